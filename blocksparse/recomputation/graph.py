"""Recomputation in graphs: under tf.function, XLA and TensorFlow 1.

The first run builds the function's operations where it is called, as without recomputation; its results go through an
IdentityN, whose gradient goes to what the run took from outside. That gradient runs the function again into a graph
function of its own, which takes all of this as inputs, with the draws and the variables' values of the first run,
and ends in its gradients. TensorFlow's own rules carry tensors into such a function from wherever they are: loops,
conditions, functions around functions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import tensorflow as tf

# The public interface cannot make a function of a graph without control dependencies on all that is stateful in it:
# draws and reads that were replaced would run again.
from tensorflow.python.eager import record
from tensorflow.python.eager.polymorphic_function.concrete_function import ConcreteFunction
from tensorflow.python.framework.func_graph import func_graph_from_py_func

from . import kinds
from .arguments import carry_back, nested, tensors
from .attach import Asked, attach, has_gradient, once
from .eager import watched
from .signs import compare, compare_structures, different, outline
from .state import State
from .trace import READS, Replaced, Trace, origin
from .variables import CHANGED, same, value_of, variable_dtype


def call(function: Callable, args: Any, makes_variables: bool) -> Any:
    """function(args), recomputed for its gradients. makes_variables: tf.get_variable may make some inside."""
    return _First(function, args, makes_variables).attached()


class _First:
    """The first run: the operations it made, and what they took."""

    def __init__(self, function: Callable, own: Any, makes_variables: bool):
        self.function, self.makes_variables = function, makes_variables
        self.state, self.asked = State(), Asked()
        self.flat = tf.nest.flatten(own, expand_composites=True)
        self.args = tf.nest.pack_sequence_as(own, self.flat, expand_composites=True)  # own may change
        self.places = [i for i, x in enumerate(self.flat) if isinstance(x, tf.Tensor) and has_gradient(x)]
        self.inputs = [tf.identity(self.flat[place]) for place in self.places]
        graph = tf.compat.v1.get_default_graph()
        before = len(graph.get_operations())
        given = self.given(self.inputs)
        parts = [*nested(own, given)]
        self.result = self.run(given)
        carry_back(parts)
        self.trace = Trace(graph, before, self.inputs)
        self.trace.check(makes_variables)
        self.outline = outline(self.result)
        self.results = [self.trace.sign(y) for y in tensors(self.result)]
        self.draws = self.trace.draws
        leaves = self.trace.leaves([y for y in tensors(self.result) if has_gradient(y)])
        self.reads = self.trace.reads()
        self.variables = {key: x for key, x in leaves.items() if variable_dtype(x) is not None}
        self.values = {key: value_of(origin(x)) for key, x in self.variables.items()}
        taken = {key: x for key, x in (leaves | self.values).items() if has_gradient(x)}
        self.taken, self.sources = list(taken), list(taken.values())

    def given(self, inputs: Sequence[tf.Tensor]) -> tuple[Sequence, dict]:
        """The arguments of a run, with inputs for those that gradients go to."""
        filled = list(self.flat)
        for place, tensor in zip(self.places, inputs):
            filled[place] = tensor
        return tf.nest.pack_sequence_as(self.args, filled, expand_composites=True)

    def run(self, given: tuple[Sequence, dict]) -> Any:
        """function of given arguments."""
        args, kwargs = given
        return _in_graph(self.function(*args, **kwargs))

    def attached(self) -> Any:
        """The result, whose gradient goes to the sources in one step."""
        outputs = tf.nest.flatten(self.result, expand_composites=True)
        places = [i for i, y in enumerate(outputs) if isinstance(y, tf.Tensor) and has_gradient(y)]
        made = attach([outputs[place] for place in places], self.sources, self.gradient)
        for number, (place, y) in enumerate(zip(places, made)):
            asked = partial(self.asked.note, number)
            outputs[place] = y if len(made) == 1 else attach([y], [y], asked)[0]
        return tf.nest.pack_sequence_as(self.result, outputs, expand_composites=True)

    def gradient(self, *dys: tf.Tensor | None) -> list:
        """The sources' gradients, given those of the results."""
        given = self.asked.taken(dys)
        incoming = [tf.convert_to_tensor(dys[place]) for place in given]
        second = _Second(self, given)
        draws = [y for draw in self.draws for y in draw]
        with tf.name_scope("recompute"), tf.control_dependencies(incoming):
            function, inputs = second.traced(
                [*self.inputs, *(value for _, value in self.reads), *draws, *incoming]
            )
            apart = {x.ref() for x in self.inputs} or {x.ref() for x in inputs} - {x.ref() for x in incoming}
            own = [x for x in inputs if x.ref() in apart]
            held = {x.ref(): y for x, y in zip(own, late(own, incoming))}
            with record.stop_recording():
                parts = iter(function.call_flat(*(held.get(x.ref(), x) for x in inputs)) or ())
            # A graph function has no output for a gradient that is None.
            outputs = tf.nest.flatten(second.gradients, expand_composites=True)
            flat = [None if y is None else next(parts) for y in outputs]
            grads = second.checked(tf.nest.pack_sequence_as(second.gradients, flat, expand_composites=True))
        return once(grads, [*incoming, *self.sources])


class _Second:
    """The second run: a graph function of the first run's inputs, values of variables, draws, and of dys."""

    def __init__(self, first: _First, given: list[int]):
        self.first, self.given = first, given
        self.read: list = []  # variables that a tf.function or a loop inside reads for itself

    def traced(self, tensors: list[tf.Tensor]) -> tuple[Any, list[tf.Tensor]]:
        """A function to the gradients of those sources that have one, and what to call it with.

        It holds what these need and nothing else: above all no read of a variable whose first value it was given,
        which would let an update of the variable overtake what computes with that value.
        """
        signature = [tf.TensorSpec(x.shape, x.dtype) for x in tensors]
        name = f"recomputed_{getattr(self.first.function, '__name__', 'function').strip('<>')}"
        graph = func_graph_from_py_func(
            name, self._build, signature, {}, signature, add_control_dependencies=False
        )
        given = {inner.ref(): x for inner, x in zip(graph.inputs, tensors)}
        given.update((inner.ref(), self.first.trace.taken(outer)) for outer, inner in graph.captures)
        needed = _needed(graph.outputs)
        graph.inputs = [x for x in graph.inputs if x.op in needed]
        operations = [op for op in graph.get_operations() if op in needed]
        graph.get_operations = lambda: operations
        # What follows this call, as updates of variables do, waits for these alone once the call is inlined.
        graph.control_outputs = [op for op in operations if op.op_def.is_stateful]
        captured = {origin(outer).ref() for outer, inner in graph.captures if inner.op in needed}
        self.read = [key for key in self.first.variables if key in captured]
        function = ConcreteFunction.from_func_graph(graph, None, {}).inference_fn
        return function, [given[x.ref()] for x in graph.inputs]

    def _build(self, *placeholders: tf.Tensor) -> list:
        first, rest = self.first, iter(placeholders)
        inputs = [next(rest) for _ in first.inputs]
        self.reads: dict = defaultdict(list)
        own = {value.ref(): [next(rest)] for _, value in first.reads}
        for what, value in first.reads:
            self.reads[what] += own[value.ref()]
        self.kept = iter([[next(rest) for _ in draw] for draw in first.draws])
        self.graph = tf.compat.v1.get_default_graph()
        self.graph._blocksparse_replaced = self.replaced = Replaced()
        # Branches and bodies inside: whether they end only when their reads have, as those of the first run do.
        ordered = getattr(self.first.trace.graph, "_add_control_dependencies", False)
        self.graph._add_control_dependencies = ordered
        before = len(self.graph.get_operations())
        with first.state.again(first.makes_variables), watched(self._give):
            result = first.run(first.given(inputs))
        trace = Trace(self.graph, before, inputs, first.trace, first.inputs)
        ys = [y for y in tensors(result) if has_gradient(y)]
        compare_structures(first.outline, outline(result))
        results = [trace.sign(y) for y in tensors(result)]
        compare(first.trace.signs, trace.signs, [*zip(first.results, results)])
        return self._gradients([ys[place] for place in self.given], list(rest), inputs, own)

    def _gradients(self, ys: list, dys: list, inputs: list, own: dict) -> list:
        """The sources' gradients. own: what stands in this graph for a source, by reference; each adds to its sum."""
        first = self.first
        own.update((x.ref(), [inner]) for x, inner in zip(first.inputs, inputs))
        for outer, inner in self.graph.captures:
            own.setdefault(origin(outer).ref(), []).append(inner)
        targets = [own.get(key, []) for key in first.taken]
        flat = [x for xs in targets for x in xs]
        found = iter(tf.gradients(ys, flat, dys))
        self.gradients = [_sum([next(found) for _ in xs]) for xs in targets]
        return self.gradients

    def _give(self, kind, inputs, attrs, outputs, op_name=None, graph=None):
        """What the first run had, in the place of what an operation of this one gives."""
        if graph is not self.graph:  # in loops and functions inside, draws are refused and reads compared
            return outputs
        given = None
        if kinds.is_draw(kind):
            given = next(self.kept, None)
            if given is None or [y.dtype for y in given] != [y.dtype for y in outputs]:
                raise different(f"the random draw {op_name}, {kind}, had no equal the first time")
        elif kind in READS and (left := self.reads[kind, origin(inputs[0]).ref()]):
            given = [left.pop(0)]
        if given is None:
            return outputs
        for result, by in zip(outputs, given):
            self.replaced.add(result, by)
        return given

    def checked(self, grads: list) -> list:
        """The gradients, if no variable that a tf.function reads for itself was updated since the first run."""
        for key in self.read:
            handle, value = self.first.variables[key], self.first.values[key]
            unchanged = same(value, value_of(handle))
            text = f"the variable {_name(origin(handle), self.first.trace.graph)} of shape {value.shape} {CHANGED}"
            with tf.control_dependencies([tf.raw_ops.Assert(condition=unchanged, data=[tf.constant(text)])]):
                # XLA runs no assertion: there the gradient is NaN.
                grads = tf.nest.map_structure(partial(_only_if, unchanged), grads, expand_composites=True)
        return grads


def late(tensors: Sequence[tf.Tensor], dys: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """tensors with the same bits, by operations that nothing can merge with those of the first run.

    Grappler folds a constant dy, and with it every dependency on dy, then merges equal operations; XLA drops
    control dependencies. Neither knows that a random draw stays below 2. The condition waits for dys in both.
    """
    floats = [dy for dy in dys if dy.dtype.is_floating]
    if not floats:
        return list(tensors)
    draw = tf.raw_ops.RandomUniform(shape=[1], dtype=tf.float32, seed=1, seed2=1)
    bound = tf.where(tf.math.is_finite(tf.reshape(floats[0], [-1])[:1]), 2.0, 3.0)
    same_bits = tf.reduce_all(draw < bound)
    return [tf.where(same_bits, x, tf.zeros_like(x)) if has_gradient(x) else x for x in tensors]


def _in_graph(result: Any) -> Any:
    """A result; what was made eagerly in it (a table of the caller's, row splits) is taken into the graph."""

    def taken(y):
        return tf.identity(y) if isinstance(y, tf.Tensor) and not tf.is_symbolic_tensor(y) else y

    return tf.nest.map_structure(taken, result, expand_composites=True)


def _only_if(unchanged: tf.Tensor, x: tf.Tensor | None) -> tf.Tensor | None:
    if x is None or not has_gradient(x):
        return x
    return tf.where(unchanged, x, tf.fill(tf.shape(x), tf.constant(float("nan"), x.dtype)))


def _needed(outputs: Sequence[tf.Tensor]) -> set[tf.Operation]:
    """The operations that outputs need."""
    found, queue = set(), [y.op for y in outputs]
    while queue:
        op = queue.pop()
        if op not in found:
            found.add(op)
            queue += [*(x.op for x in op.inputs), *op.control_inputs]
    return found


def _sum(gradients: list) -> Any:
    found = [dx for dx in gradients if dx is not None]
    if len(found) < 2:
        return found[0] if found else None
    return tf.add_n([tf.convert_to_tensor(dx) for dx in found])


def _name(handle: tf.Tensor, graph: tf.Graph) -> str:
    """What the variable is called."""
    variables = [*getattr(graph, "variables", ()), *getattr(graph, "_watched_variables", ())]
    known = [variable.name for variable in variables if variable.handle is handle]
    return known[0] if known else handle.op.name if tf.is_symbolic_tensor(handle) else "without a name"
