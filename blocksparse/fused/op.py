"""The attention op in TensorFlow: which kernel runs, its plan as a tensor, and its gradient.

Results and gradients of one call have the same bits in every run, with any number of threads, and in every way of
running: eagerly, in a tf.function, in a session and under jit_compile=True. All of these run the same compiled code
over the same plan, for every mode, merged ones included. They may differ in the last bits

    between processors      a kernel for x86-64-v2, v3 or v4 sums 4, 8 or 16 numbers side by side; a CPU and a GPU, and
                            GPUs of different generations, sum in other orders and in tiles of other sizes
    with the batch          on the CPU the gradients of few heads and rows are cut into more parts, then added
    between layouts         `a+b` as two passes and the same pattern in one layout; another blocksize
    under BLOCKSPARSE_KERNELS=reference   which is made of TensorFlow's products, and XLA orders those in its own way
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import tensorflow as tf

from ..gpu import tuning
from ..native import cuda
from ..native.devices import in_tflite_conversion, in_xla, load_kernels, warn_of_reference
from ..native.libraries import CPU
from ..native.loading import load
from ..plan import Blocks, HeadBlocks, make_plan, pack, scatter
from ..tensors import register_gradient
from . import reference

_LARGEST_CONSTANT = 1 << 26  # bytes; a graph is one protocol buffer, which holds 2 GB in all
_KERNELS = ("auto", "reference")
_graphs: weakref.WeakSet = weakref.WeakSet()  # the graphs that hold plan constants
_eager: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # packed plan -> eager tensor
_lock = threading.Lock()


class Layout(Protocol):
    """What a pass is made of: an Attention, or several for times that are not known (lengths.py)."""

    blocks: Blocks
    looks_ahead: bool

    def plan_for(
        self, dtype, head_dim: int, value_dim: int, order: tuple[int, ...], kv_heads: int, cut: bool
    ) -> PackedPlan: ...

    def tables(self, order: tuple[int, ...], kv_heads: int) -> reference.Tables: ...

    def of_order(self, order: tuple[int, ...], wanted: int) -> Layout: ...


class Attention:
    """The attention of one layout; what its kernels need is built once, by the thread that first uses it."""

    looks_ahead = False  # of tensors shorter than the layout: it shows no query a key behind their end

    def __init__(self, blocks: Blocks):
        self.blocks = blocks
        seen = blocks.masks.sum((1, 2))
        pairs = [seen[blocks.heads[number].mask].sum() for number in blocks.head_index]
        self.work = float(np.mean(pairs)) / (blocks.query_blocks * blocks.block_size)  # visible keys a query
        self.share = self.work / (blocks.key_blocks * blocks.block_size)  # of all keys
        self._built: dict = {}
        self._lock = threading.RLock()

    def __reduce__(self):
        return Attention, (self.blocks,)  # a copy builds plans and tables of its own: locks cannot be copied

    def plan_for(
        self, dtype, head_dim: int, value_dim: int, order: tuple[int, ...], kv_heads: int, cut: bool
    ) -> PackedPlan:
        """The plan with the tiles that suit what is to be computed. cut: segments may leave less of dense rows."""
        share = 0.0 if cut else self.share
        by_query, by_key = _tiles(dtype, head_dim, value_dim, self, set(order) != {1}, share)
        return self.plan(order, by_query, by_key, kv_heads)

    def scatter(self, *sizes: int) -> float:
        """Of the layout; without sizes, as tuning.choose takes it."""
        return self._once(("scatter", *sizes), lambda: scatter(self.blocks, *sizes))

    def tables(self, order: tuple[int, ...], kv_heads: int) -> reference.Tables:
        def build():
            return reference.Tables(self.blocks, np.array(order), self.blocks.head_index, kv_heads)

        return self._once(("tables", order, kv_heads), build)

    def plan(
        self, order: tuple[int, ...], by_query: tuple[int, int], by_key: tuple[int, int], kv_heads: int
    ) -> PackedPlan:
        def build():
            return PackedPlan(pack(make_plan(self.blocks, order, len(order), by_query, by_key, kv_heads)))

        return self._once((order, by_query, by_key, kv_heads), build)

    def of_order(self, order: tuple[int, ...], wanted: int) -> Attention:
        """The heads with this order alone; the others see nothing."""

        def build():
            nobody = np.zeros(0, np.int32)
            heads = (*self.blocks.heads, HeadBlocks(nobody, nobody, nobody))
            index = np.where(np.equal(order, wanted), self.blocks.head_index, len(self.blocks.heads))
            return Attention(replace(self.blocks, heads=heads, head_index=index.astype(np.int32)))

        return self._once(("order", order, wanted), build)

    def _once(self, key, build: Callable):
        with self._lock:
            if key not in self._built:
                self._built[key] = build()
            return self._built[key]


class PackedPlan:
    """A plan's blob, with an identity that caches can hold on to."""

    def __init__(self, blob: np.ndarray):
        self.blob = blob

    def part(self, plan: tf.Tensor, q: tf.Tensor) -> tf.Tensor:
        """What a call on q reads of the whole vector `plan`."""
        return plan


def attend(
    q,
    k,
    v,
    passes: Sequence[tuple[Layout, tuple[int, ...]]],
    scale: float,
    with_lse: bool = False,
    kv_heads: int | None = None,
    segments: Sequence[tf.Tensor] = (),
):
    """out, or (out, lse), over the keys of all passes, the arguments as in reference.attention.

    passes: layouts, no two of which show a query the same key, each with its order, one number a head. A row without
    keys has lse -inf. kv_heads: heads of k and v, as many as of q by default.
    segments: int32 [batch, query_time] and [batch, key_time], or nothing: a query sees only keys of its own number, and
        none where that is negative.
    """
    segments = _hiding(segments, q, k, passes)
    call = _Call(q, v, passes, kv_heads, segments)
    if call.ops is None:
        out, lse = reference.attention(q, k, v, call.tables(), scale, segments)
        return (out, reference.with_infinity(lse)) if with_lse else out
    plans, hides = call.plans(), call.looks_ahead
    if len(plans) == 1:
        out, lse = call.ops.blocksparse_attention(
            q, k, v, *plans, segments, scale=scale, hides=hides, **call.heads
        )
    else:
        out, lse = call.ops.blocksparse_joined_attention(
            q, k, v, plans, segments, scale=scale, hides=hides, **call.heads
        )
    return (out, lse) if with_lse else out


def attend_gradient(
    q,
    k,
    v,
    out,
    lse,
    dout,
    passes: Sequence[tuple[Layout, tuple[int, ...]]],
    scale: float,
    kv_heads: int | None = None,
    segments: Sequence[tf.Tensor] = (),
) -> Sequence[tf.Tensor]:
    """(dq, dk, dv) of `attend`, given the (out, lse) it returned: the attention does not run again."""
    segments = _hiding(segments, q, k, passes)
    call, dlse = _Call(q, v, passes, kv_heads, segments), tf.zeros_like(lse)
    if call.ops is None:
        return reference.gradient(q, k, v, out, lse, dout, dlse, call.tables(), scale, segments)
    plans, given = call.plans(), (q, k, v, out, lse, dout, dlse)
    if len(plans) == 1:
        return call.ops.blocksparse_attention_grad(*given, *plans, segments, scale=scale, **call.heads)
    return call.ops.blocksparse_joined_attention_grad(*given, plans, segments, scale=scale, **call.heads)


class _Call:
    """What runs one call: `ops`, None where the reference has to; its passes; the op's attributes of heads."""

    def __init__(self, q, v, passes, kv_heads: int | None, segments: Sequence):
        heads = len(passes[0][1])
        self.kv_heads = kv_heads or heads
        self.heads = dict(heads=heads, kv_heads=0 if self.kv_heads == heads else self.kv_heads)
        self.q, self.dims = q, (q.shape.as_list()[2] // heads, v.shape.as_list()[2] // self.kv_heads)
        self.passes = [
            one for layout, order in passes for one in _passes_of_one_order(layout, order, self.kv_heads)
        ]
        self.cut = bool(segments)
        library = _library()
        self.looks_ahead = any(layout.looks_ahead for layout, _ in passes)
        self.ops = library if library and _takes(*self.dims) else None

    def tables(self) -> list[reference.Tables]:
        return [layout.tables(order, self.kv_heads) for layout, order in self.passes]

    def plans(self) -> list:
        plans = [
            layout.plan_for(self.q.dtype, *self.dims, order, self.kv_heads, self.cut)
            for layout, order in self.passes
        ]
        return [plan.part(_plan_tensor(plan, self.ops), self.q) for plan in plans]


def _passes_of_one_order(layout: Layout, order: tuple[int, ...], kv_heads: int):
    """The pass, or one for every order where heads that read one key head have different ones: a plan gathers a key
    head's rows in one order.
    """
    group = len(order) // kv_heads
    if all(len(set(order[first : first + group])) == 1 for first in range(0, len(order), group)):
        return [(layout, order)]
    return [(layout.of_order(order, each), (each,) * len(order)) for each in sorted(set(order))]


def kernel_name() -> str:
    """What attention runs on here: "cpu", "gpu" (wherever TensorFlow places it on one) or "reference".

    Beside a GPU, heads of a width that its kernels do not take run on the reference in any case, with a warning.
    """
    if _library() is None:
        return "reference"
    return "gpu" if cuda.capabilities() else "cpu"


def clear_bst_constants() -> None:
    """Forget the plan constants of all graphs, as OpenAI's programs do before they build a new one."""
    with _lock:
        _eager.clear()
        for graph in _graphs:
            del graph._blocksparse_plans
        _graphs.clear()


def _takes(head_dim: int, value_dim: int) -> bool:
    """Whether the kernels of all devices take heads so wide: the CPU's do in any case."""
    takes = not cuda.capabilities() or all(d % 8 == 0 and d <= 256 for d in (head_dim, value_dim))
    if not takes:
        warn_of_reference(
            f"head_dim={head_dim}, value_dim={value_dim}: the GPU kernels take multiples of 8 up to 256"
        )
    return takes


def _hiding(segments, q, k, passes) -> Sequence[tf.Tensor]:
    """The segments, or one of all that exists where a GPU has to hide what is behind the end of an unknown time."""
    if segments or not (cuda.capabilities() and any(layout.looks_ahead for layout, _ in passes)):
        return segments
    # Not tf.zeros(..., tf.int32), which TensorFlow makes on the host: the kernels would wait for the copy.
    return [tf.cast(tf.zeros(tf.shape(x)[:2]), tf.int32) for x in (q, k)]


def _library():
    """The library of kernels, or None where the reference has to run."""
    chosen = os.environ.get("BLOCKSPARSE_KERNELS") or "auto"
    if chosen not in _KERNELS:
        raise ValueError(f"BLOCKSPARSE_KERNELS={chosen} is not known; it can be one of {', '.join(_KERNELS)}")
    return None if chosen == "reference" or in_tflite_conversion() else load_kernels()


def _tiles(dtype, head_dim: int, value_dim: int, layout: Attention, reordered: bool, share: float):
    """((M, N) by query, (M, N) by key): such that all GPUs here can take, or any GPU where there is none."""
    dims, capabilities = (head_dim, value_dim), cuda.capabilities()
    if capabilities:
        return tuning.choose(
            dtype.name,
            *dims,
            layout.blocks.block_size,
            layout.work,
            tuning.common(capabilities),
            reordered,
            share,
            layout.scatter(),
        )
    tile, small = tuning.anywhere(dtype.name, *dims, layout.blocks.block_size)
    if small < tile and layout.scatter(tile, small) >= tuning.SCATTERED:
        tile = small
    return (tile, tile), (tile, tile)


def _plan_tensor(plan: PackedPlan, library):
    """The plan in the graph at hand: a constant, or above 64 MB an op that holds it compressed.

    XLA knows that op and unpacks it when it compiles a graph; what is traced inside jit_compile gets a constant.
    """
    if plan.blob.nbytes > _LARGEST_CONSTANT and not tf.executing_eagerly() and not in_xla():
        return library.blocksparse_plan(data=zlib.compress(plan.blob.tobytes(), 1), length=len(plan.blob))
    with tf.init_scope(), _lock:
        if tf.executing_eagerly():
            if plan not in _eager:
                with tf.device("CPU:0"):
                    _eager[plan] = tf.constant(plan.blob)
            return _eager[plan]
        graph = tf.compat.v1.get_default_graph()
        if graph not in _graphs:
            _graphs.add(graph)
            graph._blocksparse_plans = {}  # on the graph: tensors in a table of this module would keep it alive
        if plan not in graph._blocksparse_plans:
            graph._blocksparse_plans[plan] = tf.constant(plan.blob, name="blocksparse_plan")
        return graph._blocksparse_plans[plan]


def _expect_infinite_row_sums() -> None:
    """Keep tf.debugging.enable_check_numerics from stopping healthy programs at the -inf that a row without keys has in
    output 1: TensorFlow has a list of such outputs. A NaN among the row sums is in output 0 too, and found there.
    """
    with contextlib.suppress(ImportError, AttributeError):  # the list is not part of its interface
        from tensorflow.python.debug.lib import check_numerics_callback as checks

        checks.IGNORE_OP_OUTPUTS += (b"BlocksparseAttention", 1), (b"BlocksparseJoinedAttention", 1)


_expect_infinite_row_sums()


@register_gradient("BlocksparseAttention")
def _attention_gradient(op, dout, dlse):
    q, k, v, plan, *segments = op.inputs
    return *load(CPU).ops.blocksparse_attention_grad(
        q, k, v, *op.outputs, dout, dlse, plan, segments, **_attributes(op)
    ), *[None] * (1 + len(segments))


@register_gradient("BlocksparseJoinedAttention")
def _joined_gradient(op, dout, dlse):
    q, k, v, *rest = op.inputs
    passes = op.get_attr("passes")
    return *load(CPU).ops.blocksparse_joined_attention_grad(
        q, k, v, *op.outputs, dout, dlse, rest[:passes], rest[passes:], **_attributes(op)
    ), *[None] * len(rest)


def _attributes(op) -> dict:
    return {name: op.get_attr(name) for name in ("heads", "scale", "kv_heads")}


@register_gradient("BlocksparseAttentionGrad")
@register_gradient("BlocksparseJoinedAttentionGrad")
def _second_gradient(op, *gradients):
    return reference.refuse_second_gradient()
