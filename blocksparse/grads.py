"""Recomputation: keep a function's inputs, not its activations, and compute it again in the backward pass."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import record  # an outer tape would hold on to what is forgotten here

from .tensors import TensorLike, as_float32, register_gradient
from .utils import Seeds


class recomputable:
    """Decorator: `f(*args, recompute=True, **kwargs)` forgets what f computed inside, and computes it again
    when gradients are taken. `recompute` defaults to False; the result and its gradients are the same either
    way.

    Under TensorFlow 1 graphs f may make variables by tf.get_variable, use any variable or tensor from
    outside, and its gradients come from gradients() or tf.gradients. Eagerly and under tf.function variables
    may come from outside, but a tensor that needs a gradient must be a positional argument. Nested use and
    methods work. Random numbers drawn through draw_seed() (as dropout() does) are the same in both passes;
    other random ops draw anew.
    """

    def __init__(self, function: Callable):
        functools.update_wrapper(self, function)
        self.function = function

    def __call__(self, *args: Any, recompute: bool = False, **kwargs: Any) -> Any:
        if not recompute:
            return self.function(*args, **kwargs)
        return call_recomputed(self.function, *args, **kwargs)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else functools.partial(self, instance)


def call_recomputed(function: Callable, *args: Any, **kwargs: Any) -> Any:
    """function(*args, **kwargs), recomputed for its gradients as recomputable says."""
    if tf.executing_eagerly() or tf.compat.v1.get_default_graph().building_function:
        return _call_on_tape(function, args, kwargs)
    return _call_in_graph(functools.partial(function, *args, **kwargs))


# Eagerly and under tf.function


def _call_on_tape(function: Callable, args: tuple, kwargs: dict) -> Any:
    seeds = Seeds()
    flat = tf.nest.flatten(args)
    places = [i for i, arg in enumerate(flat) if tf.is_tensor(arg) and not isinstance(arg, tf.Variable)]

    def run(tensors: Sequence[tf.Tensor]) -> Any:
        filled = list(flat)
        for place, tensor in zip(places, tensors):
            filled[place] = tensor
        return function(*tf.nest.pack_sequence_as(args, filled), **kwargs)

    @tf.custom_gradient
    def call(*tensors):
        with seeds.record(), record.stop_recording():
            outputs = run(tensors)
        end = _probe(outputs)

        def grad(*dys, variables=()):
            again = _after(end + _probe(dys), tensors)
            with tf.GradientTape() as tape, tf.control_dependencies(dys), seeds.replay():
                tape.watch([x for x in again if x.dtype.is_floating])
                outputs = tf.nest.flatten(run(again))
            dxs = tape.gradient(outputs, [*again, *variables], output_gradients=list(dys))
            return (dxs[: len(again)], dxs[len(again) :]) if variables else dxs

        return outputs, grad

    return call(*(flat[place] for place in places))


def _probe(structure: Any) -> tf.Tensor:
    """A number that cannot be had before the floating tensors in structure."""
    floating = [x for x in _tensors(structure) if x.dtype.is_floating]
    return tf.add_n([as_float32(tf.reshape(x, [-1])[:1]) for x in floating])


def _after(probe: tf.Tensor, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """The floating tensors plus 0, where XLA cannot know that it is 0 nor have it before the probe.

    XLA drops control dependencies and merges equal computations: only a value keeps the second one apart.
    """
    never = tf.reduce_any(probe < -float("inf"))  # not even for NaN
    return [x + tf.cast(never, x.dtype) if x.dtype.is_floating else x for x in tensors]


# In a TensorFlow 1 graph


def _call_in_graph(function: Callable[[], Any]) -> Any:
    """The outputs pass through an IdentityN together with the leaves: what they were computed from and that
    was there before. Its gradient builds the function again and hands the leaves theirs, so that no gradient
    goes through the forward pass and nothing of that is kept."""
    graph = tf.compat.v1.get_default_graph()
    if graph._get_control_flow_context() is not None:
        raise ValueError(
            "blocksparse.recomputable cannot be inside a TensorFlow 1 condition or loop; use that of sparse_attention"
        )
    scope = tf.compat.v1.get_variable_scope()
    seeds, before = Seeds(), graph.version
    with seeds.record():
        structure = function()
    outputs = _tensors(structure)
    leaves = _leaves(outputs, set(graph.get_operations()[before:]))

    def grad(dys: Sequence[tf.Tensor]) -> list[tf.Tensor | None]:
        dys = [dy for dy, y in zip(dys, outputs) if y.dtype.is_floating]
        again = tf.compat.v1.variable_scope(scope, reuse=True, auxiliary_name_scope=False)
        # The attribute tells TensorFlow's optimiser that the two computations differ: it merges equal ones.
        mark = graph._attr_scope({"_blocksparse_recomputed": tf.compat.v1.AttrValue(b=True)})
        # TensorArrays' gradients find each other by the last "gradients" in a name: each call's has to be its own.
        with tf.name_scope("recompute/"):
            with mark, graph.control_dependencies(dys), again, seeds.replay():
                ys = [y for y in _tensors(function()) if y.dtype.is_floating]
            dxs = tf.gradients(ys, leaves, dys, stop_gradients=leaves)
        return [None] * len(outputs) + [None if dx is None else tf.identity(dx) for dx in dxs]

    with graph.gradient_override_map({"IdentityN": "BlocksparseRecompute"}):
        passed = tf.identity_n(outputs + leaves)
    _gradient_functions(graph)[passed[0].op.name] = grad
    return tf.nest.pack_sequence_as(structure, passed[: len(outputs)])


def _tensors(structure: Any) -> list[tf.Tensor]:
    return [tf.convert_to_tensor(value) for value in tf.nest.flatten(structure)]


def _leaves(outputs: list[tf.Tensor], inside: set[tf.Operation]) -> list[tf.Tensor]:
    """What outputs depend on and gradients can reach: tensors of ops not inside, and variables wherever
    made."""
    leaves, seen, queue = {}, set(), list(outputs)
    while queue:
        tensor = queue.pop()
        if tensor.ref() in seen:
            continue
        seen.add(tensor.ref())
        if tensor.op not in inside or tensor.op.type == "VarHandleOp" or _reads_variable(tensor.op):
            if tensor.dtype.is_floating or tensor.dtype == tf.resource:
                leaves[tensor.ref()] = tensor
        else:
            queue.extend(tensor.op.inputs)
    return list(leaves.values())


def _reads_variable(op: tf.Operation) -> bool:
    return any(tensor.dtype._is_ref_dtype for tensor in op.inputs)


def _gradient_functions(graph: tf.Graph) -> dict[str, Callable]:
    """By the name of the IdentityN. They live on the graph, with which they die."""
    if not hasattr(graph, "_blocksparse_recompute"):
        graph._blocksparse_recompute = {}
    return graph._blocksparse_recompute


@register_gradient("BlocksparseRecompute")
def _recompute_gradient(op: tf.Operation, *dys: tf.Tensor) -> list[tf.Tensor | None]:
    grad = _gradient_functions(op.graph).get(op.name)
    if grad is None:
        raise LookupError(
            f"{op.name} can be recomputed only where it was built, not in a loaded graph: build it here"
        )
    return grad(dys)


def gradients(
    ys: TensorLike,
    xs: TensorLike,
    grad_ys: TensorLike = None,
    stop_grads: TensorLike = None,
    group_aggregations: int = 8,
    custom_matmul_grad: bool = True,
) -> list[tf.Tensor | None]:
    """d(sum ys) / d(x) for each x, dense; None where ys do not depend on x. For TensorFlow 1 graphs;
    elsewhere take them from a tf.GradientTape. The last two arguments ordered OpenAI's kernels and change
    nothing here."""
    if tf.executing_eagerly():
        raise RuntimeError("gradients() needs a graph: with eager execution take them from a tf.GradientTape")
    found = tf.gradients(ys, xs, grad_ys=grad_ys, stop_gradients=stop_grads)
    return [None if dx is None else tf.convert_to_tensor(dx) for dx in found]
