"""`@recomputable`: forget what a function computed inside, and compute it again in the backward pass.

Section 5.4 of the paper. TensorFlow's optimisers undo this where they can prove the second computation equal
to the first, so `_guarded` feeds the second one through a condition that they cannot evaluate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import tensorflow as tf

# The public interface lacks these: a forward pass that no tape of the caller's holds on to, a look at each operation
# as it is made, what a variable's handle stands for, and which loop a tensor is in.
from tensorflow.python.eager import forwardprop_util, record
from tensorflow.python.framework import op_callbacks
from tensorflow.python.ops import control_flow_util, handle_data_util
from tensorflow.python.ops.control_flow_v2_func_graphs import CondBranchFuncGraph, WhileBodyFuncGraph

# Operations that give another result when they run again. What they gave is kept and given again.
_DRAWS = frozenset(
    "Multinomial RandomPoissonV2 RandomShuffle RandomStandardNormal RandomUniform RandomUniformInt "
    "RngReadAndSkip StatefulRandomBinomial StatefulStandardNormalV2 StatefulTruncatedNormal StatefulUniform "
    "StatefulUniformFullInt StatefulUniformInt TruncatedNormal".split()
)
_ASSIGNS = frozenset(
    "Assign AssignAdd AssignSub AssignVariableOp AssignAddVariableOp AssignSubVariableOp".split()
)
_NO_GRADIENT = (
    "a recomputable function inside a condition or loop captured a variable or tensor that has no gradient there; "
    "give its value as an argument: f(x, w.read_value(), recompute=True)"
)
_NO_SECOND = (
    "the gradient of a recomputed function cannot be differentiated again; call the function with "
    "recompute=False where second or forward-mode derivatives are needed"
)
_ENTERS, _EXITS = ({name, "Ref" + name} for name in ("Enter", "Exit"))  # of TensorFlow 1's loops


def recomputable(function: Callable | str) -> Callable:
    """Decorator: `f(..., recompute=True)` keeps nothing but f's arguments for the backward pass.

    recompute is False unless given. Results and gradients are the same either way; the second forward
    computation costs time. Use it bare, or with a name as in OpenAI's code: `@recomputable` or
    `@recomputable("f")`. Arguments and results may be nested, and need not be tensors. Works eagerly, under
    tf.function (jit_compile too) and in TensorFlow 1 graphs, and one recomputable function may call another.

    Variables are made outside f and may be captured; so may tensors, but not eagerly, where what needs a
    gradient has to be an argument. Random numbers that f draws are kept, so that both computations see the
    same dropout mask; stateless draws cost no memory.

    Raises:
        ValueError: f makes or assigns a variable, draws statefully inside control flow or a tf.function, takes
            from outside the control flow it runs in what TensorFlow cannot differentiate there, or has a loop
            inside a TensorFlow 1 loop.
        LookupError: the gradient is differentiated again, or the function in forward mode.
    """
    if not callable(function):
        return recomputable

    @wraps(function)
    def call(*args, recompute: bool = False, **kwargs):
        if not recompute:
            return function(*args, **kwargs)
        return _recomputed(function, args, kwargs)

    return call


def _recomputed(function: Callable, args: tuple, kwargs: dict) -> Any:
    flat = tf.nest.flatten((args, kwargs), expand_composites=True)
    places = [place for place, value in enumerate(flat) if isinstance(value, tf.Tensor)]

    def run(tensors: Sequence[tf.Tensor]) -> Any:
        values = list(flat)
        for place, tensor in zip(places, tensors):
            values[place] = tensor
        filled_args, filled_kwargs = tf.nest.pack_sequence_as((args, kwargs), values, expand_composites=True)
        return function(*filled_args, **filled_kwargs)

    first = _EagerPass if tf.executing_eagerly() else _GraphPass
    forward = first(run, [tf.identity(flat[place]) for place in places])
    outputs = tf.nest.flatten(forward.result, expand_composites=True)
    tensors = [place for place, value in enumerate(outputs) if isinstance(value, tf.Tensor)]

    @tf.custom_gradient
    def attach(*given):
        """The outputs, as if computed from the arguments and captures in one step."""

        def gradient(*dys):
            return [None] * len(tensors) + forward.gradient(dys)

        return [tf.identity(y) for y in given[: len(tensors)]], gradient

    attached = attach(*(outputs[place] for place in tensors), *forward.inputs, *forward.captured)
    for place, tensor in zip(tensors, attached):
        outputs[place] = tensor
    return tf.nest.pack_sequence_as(forward.result, outputs, expand_composites=True)


class _EagerPass:
    """The forward pass under eager execution; `captured` are the values of the variables it read."""

    def __init__(self, run: Callable, inputs: list[tf.Tensor]):
        if forwardprop_util.pack_tangents(inputs).tangents:
            raise NoSecondDerivative(_NO_SECOND)
        self.run, self.inputs, self.draws = run, inputs, _Draws(None)
        with record.stop_recording(), record.VariableWatcher() as watcher, self.draws.recorded():
            self.result = run(inputs)
        self.variables = watcher.watched_variables()
        self.captured = [tf.convert_to_tensor(variable) for variable in self.variables]

    def gradient(self, dys: Sequence[tf.Tensor]) -> list:
        run = self.run
        if self.draws.kept:  # eager operations cannot be given other results, those of a graph can
            run = tf.function(self.draws.replaying(run), autograph=False)
        dys, again = _guarded(dys, self.inputs)
        with tf.GradientTape() as tape:
            tape.watch([x for x in again if _has_gradient(x)])
            result = run(again)
        ys, dys = _differentiable(result, dys)
        return tape.gradient(ys, [*again, *self.variables], output_gradients=dys)


class _GraphPass:
    """The forward pass in a graph; `captured` are the tensors, and values of variables, it took from outside."""

    def __init__(self, run: Callable, inputs: list[tf.Tensor]):
        self.run, self.inputs, self.draws = run, inputs, _Draws(tf.compat.v1.get_default_graph())
        with self.draws.recorded():
            self.result, captures = _captures(run, inputs)
        self.captured = [_value(x) for x in captures.values()]
        self.roots = list(captures)

    def gradient(self, dys: Sequence[tf.Tensor]) -> list:
        self._check_captures()
        # A TensorArray's gradients find each other by the last "gradients" in their names, which has to be that of
        # the call they come from: a scope of their own, and identities in the caller's.
        with tf.control_dependencies([dy for dy in dys if dy is not None]), tf.name_scope("recompute/"):
            dys, again = _guarded(dys, self.inputs)
            # The gradient of a tf.function is a graph of its own, which has captures of its own.
            result, captures = _captures(self.draws.replaying(self.run), again)
            ys, dys = _differentiable(result, dys)
            found, around = [captures.get(root) for root in self.roots], _contexts()
            if any(x is None or _loop(x) not in around for x in found):  # a TensorFlow 1 loop made it
                raise ValueError(_NO_GRADIENT)
            xs = [*again, *found]
            grads = tf.gradients(ys, xs, grad_ys=dys, stop_gradients=xs)
        return [None if dx is None else tf.identity(dx) for dx in grads]

    def _check_captures(self) -> None:
        """TensorFlow's gradients of a condition or loop do not find what only they take from further outside."""
        graph = self.draws.graph
        in_condition, in_loop = (
            isinstance(graph, kind) for kind in (CondBranchFuncGraph, WhileBodyFuncGraph)
        )
        for x in (root.deref() for root in self.roots):
            lost = not tf.is_symbolic_tensor(x) or (in_condition and x.graph is not graph.outer_graph)
            if lost and (in_condition or in_loop):
                raise ValueError(_NO_GRADIENT)


def _has_gradient(x: tf.Tensor) -> bool:
    return x.dtype.is_floating or x.dtype.is_complex


def _variable_dtype(x: tf.Tensor) -> tf.DType | None:
    """What the variable holds that x is the handle of; None where x is no such thing."""
    if x.dtype != tf.resource:
        return None
    data = handle_data_util.get_resource_handle_data(x)
    return tf.as_dtype(data.shape_and_type[0].dtype) if data.is_set else None


def _value(x: tf.Tensor) -> tf.Tensor:
    """A capture as a number: TensorFlow refuses gradients of loops in which an operation gives out a handle."""
    dtype = _variable_dtype(x)
    return x if dtype is None else tf.raw_ops.ReadVariableOp(resource=x, dtype=dtype)


def _differentiable(result: Any, dys: Sequence[tf.Tensor]) -> tuple[list, list]:
    """The outputs that have a gradient, with it."""
    ys = [y for y in tf.nest.flatten(result, expand_composites=True) if isinstance(y, tf.Tensor)]
    pairs = [(y, dy) for y, dy in zip(ys, dys) if dy is not None and _has_gradient(y)]
    return [y for y, _ in pairs], [dy for _, dy in pairs]


def _captures(run: Callable, inputs: list[tf.Tensor]) -> tuple[Any, dict]:
    """run(inputs), and what it took from outside that may need a gradient: origin -> tensor of this graph."""
    graph = tf.compat.v1.get_default_graph()
    before = len(graph.get_operations())
    result = run(inputs)
    operations = graph.get_operations()[before:]
    outside = {internal.op for _, internal in getattr(graph, "captures", ())}
    around = _contexts()
    outside |= {op for op in operations if op.type in _ENTERS and op._get_control_flow_context() in around}
    inside = dict.fromkeys(op for op in operations if op not in outside)
    own = {x.ref() for x in inputs}
    found = {}
    for operation in inside:
        for x in operation.inputs:
            wanted = _has_gradient(x) or _variable_dtype(x) is not None
            if wanted and x.op not in inside and x.ref() not in own:
                found[_origin(x).ref()] = x
    return result, found


def _contexts() -> list:
    """The TensorFlow 1 loops and conditions around what is made now, and None around all."""
    found = [tf.compat.v1.get_default_graph()._get_control_flow_context()]
    while found[-1] is not None:
        found.append(found[-1].outer_context)
    return found


def _loop(x: tf.Tensor):
    """The innermost TensorFlow 1 loop that x is made in, if any."""
    return control_flow_util.GetWhileContext(x.op) if tf.is_symbolic_tensor(x) else None


def _origin(x: tf.Tensor) -> tf.Tensor:
    """The tensor that a placeholder of a function stands for, through all functions and loops around it."""
    if tf.is_symbolic_tensor(x) and x.op.type in _ENTERS:
        return _origin(x.op.inputs[0])
    for external, internal in getattr(getattr(x, "graph", None), "captures", ()):
        if internal is x:
            return _origin(external)
    return x


def _guarded(dys: Sequence[tf.Tensor], inputs: list[tf.Tensor]) -> tuple[list, list[tf.Tensor]]:
    """dys and inputs with the same bits, by operations that nothing can merge with those of the first pass.

    Grappler folds a constant dy, and with it every dependency on dy, then merges equal operations; XLA drops
    control dependencies. Neither knows that a random draw stays below 2. The condition waits for dys in both.
    """
    floats = [dy for dy in dys if dy is not None and dy.dtype.is_floating]
    if not tf.executing_eagerly() and floats:
        draw = tf.raw_ops.RandomUniform(shape=[1], dtype=tf.float32, seed=1, seed2=1)
        bound = tf.where(tf.math.is_finite(tf.reshape(floats[0], [-1])[:1]), 2.0, 3.0)
        same = tf.reduce_all(draw < bound)
        inputs = [tf.where(same, x, tf.zeros_like(x)) if x.dtype.is_numeric else x for x in inputs]
    dys = list(dys)
    given = [place for place, dy in enumerate(dys) if dy is not None]
    once = _once(*(dys[place] for place in given), *inputs)
    for place, dy in zip(given, once):
        dys[place] = dy
    return dys, list(once[len(given) :])


class NoSecondDerivative(LookupError):
    """Raised where the gradient of a recomputed function is differentiated."""

    __init__ = Exception.__init__  # what AutoGraph asks for, else it raises an error of its own instead


@tf.custom_gradient
def _once(*tensors):
    def gradient(*_):
        raise NoSecondDerivative(_NO_SECOND)

    return [tf.identity(x) for x in tensors], gradient


class _Draws:
    """The random draws of the first pass, in order, for the second."""

    def __init__(self, graph: tf.Graph | None):
        self.graph = graph
        context = graph._get_control_flow_context() if graph else None
        self.loop = context.GetWhileContext() if context else None
        self.kept: list = []

    @contextmanager
    def recorded(self) -> Iterator[None]:
        with _watched(self._keep):
            yield

    def replaying(self, run: Callable) -> Callable:
        """run, with the kept draws in place of its own."""

        def replay(tensors):
            kept = iter(self.kept)

            def give(kind, inputs, attrs, outputs, op_name=None, graph=None):
                return next(kept) if kind in _DRAWS else outputs

            with _watched(give):
                return run(tensors)

        return replay

    def _keep(self, kind, inputs, attrs, outputs, op_name=None, graph=None):
        if kind in _ASSIGNS:
            raise ValueError(
                "a recomputable function made or assigned a variable, which the backward pass would do again; "
                "do that outside (Keras's Dropout keeps its seed in a variable: use tf.nn.dropout or "
                "tf.nn.experimental.stateless_dropout)"
            )
        if kind in _EXITS and self.loop:
            raise ValueError(
                "a recomputable function inside a TensorFlow 1 loop has a loop of its own, which has no gradient "
                "there; call tf.compat.v1.enable_control_flow_v2() first"
            )
        if kind in _DRAWS:
            if graph is not self.graph or _loop(outputs[0]) is not self.loop:
                raise ValueError(
                    f"a recomputable function ran {kind} inside control flow or a tf.function, where the "
                    "draw cannot be kept for the backward pass; draw statelessly there "
                    "(tf.nn.experimental.stateless_dropout, tf.random.stateless_uniform)"
                )
            self.kept.append(list(outputs))
        return outputs


@contextmanager
def _watched(callback: Callable) -> Iterator[None]:
    op_callbacks.add_op_callback(callback)
    try:
        yield
    finally:
        op_callbacks.remove_op_callback(callback)
