"""Sums over ranks. One rank: the tensor itself. Several: mpi4py's Allreduce on the host, for OpenAI's mpirun
programs; new programs are better served by tf.distribute, which keeps the tensors on the devices."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from .ewops import float_cast
from .tensors import TensorLike

_COLLECTION = "blocksparse_allreduce"  # the graph's reductions, in the order in which every rank builds them
_LAUNCHERS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS")


def _world() -> Any:
    """MPI's communicator of all ranks, or None when this process is the only one."""
    try:
        from mpi4py import MPI
    except ImportError:
        several = next((name for name in _LAUNCHERS if int(os.environ.get(name, "1")) > 1), None)
        if several is None:
            return None
        raise RuntimeError(
            f"{several} is {os.environ[several]}, but mpi4py is missing: pip install mpi4py, or train under"
            " tf.distribute.MultiWorkerMirroredStrategy"
        ) from None
    return MPI.COMM_WORLD if MPI.COMM_WORLD.Get_size() > 1 else None


def allreduce(
    x: TensorLike,
    sync_size: int = 0,
    num_comms: int = 2,
    logfile: str = "",
    rank: int = 0,
    prereduce: int = 0,
    name: str | None = None,
    mpi_ranks: Sequence[int] | None = None,
    comm_id: int = 0,
    debug_str: str = "",
) -> tf.Tensor:
    """The sum of x over the ranks in mpi_ranks (None: all), and of the gradients on the way back; x's shape
    and dtype.

    float16 and bfloat16 are summed in float32. Every rank must build its reductions in the same order. The
    other arguments tuned NCCL and change nothing here.
    """
    x = tf.convert_to_tensor(x)
    if (world := _world()) is None:
        return tf.identity(x, name=name)
    ranks = list(range(world.Get_size())) if mpi_ranks is None else list(mpi_ranks)

    @tf.custom_gradient
    def reduce(x):
        return _reduce(x, world, ranks, name), lambda dy: _reduce(dy, world, ranks, name)

    return reduce(x)


def _reduce(x: tf.Tensor, world: Any, ranks: list[int], name: str | None) -> tf.Tensor:
    # A communicator for each op: where ranks run two ops in different orders, their numbers must not meet.
    comm = world.Create_group(world.Get_group().Incl(ranks))

    def on_host(value: np.ndarray) -> np.ndarray:
        total = np.empty_like(value)
        comm.Allreduce(np.ascontiguousarray(value), total)
        return total

    wide = tf.cast(x, tf.float32) if x.dtype in (tf.float16, tf.bfloat16) else x
    total = tf.numpy_function(on_host, [wide], wide.dtype, name=name or "Allreduce")
    if not tf.executing_eagerly():
        tf.compat.v1.add_to_collection(_COLLECTION, total.op)
    return tf.cast(tf.ensure_shape(total, x.shape), x.dtype)


def group_allreduce(
    grads: list[Any],
    parms: Sequence[tf.Variable],
    search_strings: Sequence[str | Sequence[str]] | None = None,
    cast_map: dict[str, tf.DType] | None = None,
    cast_all: tf.DType | None = None,
    allreduce_op: Callable = allreduce,
    **allreduce_kwargs: Any,
) -> list[Any]:
    """Replaces each gradient by its sum over the ranks, in one reduction for each group and dtype; returns
    grads.

    search_strings: a group for each, of the parameters whose name contains it (or one of them), in this
    order, the last taking the rest; None: one group. cast_all, else cast_map[string]: the dtype to reduce in,
    and to return.
    """
    cast_map = cast_map or {}
    groups: dict[tuple[int, tf.DType], list[int]] = {}
    strings = [[s] if isinstance(s, str) else list(s) for s in search_strings or [[]]]
    for i, (grad, param) in enumerate(zip(grads, parms)):
        found = (j for j, names in enumerate(strings) if any(name in param.name for name in names))
        group = next(found, len(strings) - 1)
        dtype = (
            cast_all or next((cast_map[n] for n in strings[group] if n in cast_map), None)
            if cast_map
            else cast_all
        )
        grads[i] = tf.convert_to_tensor(grad) if dtype is None else float_cast(grad, dtype=dtype)
        groups.setdefault((group, grads[i].dtype), []).append(i)
    for members in (groups[key] for key in sorted(groups, key=lambda key: (key[0], key[1].name))):
        flat = tf.concat([tf.reshape(grads[i], [-1]) for i in members], axis=0)
        sizes = [tf.size(grads[i]) for i in members]
        parts = tf.split(allreduce_op(flat, **allreduce_kwargs), sizes)
        for i, part in zip(members, parts):
            grads[i] = tf.reshape(part, tf.shape(grads[i]))
    return grads


def sync_variables_op(mpi_rank: int, num_comms: int = 2, prereduce: int = 0) -> tf.Operation:
    """Gives the graph's trainable variables, on every rank, the values of rank 0."""
    return _assign_sums(
        tf.compat.v1.trainable_variables(), lambda value: value if mpi_rank == 0 else value * 0
    )


def sync_globals_zero_init_op(num_comms: int = 2, prereduce: int = 0) -> tf.Operation:
    """Gives the graph's variables their sum over the ranks, where all but rank 0 start them at zero."""
    return _assign_sums(tf.compat.v1.global_variables(), lambda value: value)


def _assign_sums(variables: Sequence[tf.Variable], share: Callable[[tf.Tensor], tf.Tensor]) -> tf.Operation:
    return tf.group([variable.assign(allreduce(share(variable.read_value()))) for variable in variables])


def serialize_allreduce_ops(
    graph_targets: Sequence[tf.Tensor], serialize_inputs: bool = True, print_dag: bool | str = False
) -> None:
    """Makes the reductions that graph_targets need run in the order in which they were built, on every rank
    the same.

    For TensorFlow 1 graphs. The last two arguments chose among NCCL's ways and change nothing here.
    """
    needed, queue = set(), [target.op for target in graph_targets]
    while queue:
        op = queue.pop()
        if op not in needed:
            needed.add(op)
            queue.extend([*op.control_inputs, *(tensor.op for tensor in op.inputs)])
    reductions = [op for op in tf.compat.v1.get_collection(_COLLECTION) if op in needed]
    for first, second in itertools.pairwise(reductions):
        second._add_control_input(first)
