"""The operations that one run of a function made in a graph: their signs, draws, and what they took from outside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from zlib import crc32

import tensorflow as tf

from . import control_flow, kinds
from .attach import has_gradient
from .signs import Signs, different
from .variables import refuse_list, variable_dtype

_ENTERS = {"Enter", "RefEnter"}  # of TensorFlow 1's loops
_SWITCHES, _MERGES = {"Switch", "RefSwitch"}, {"Merge", "RefMerge"}  # of its conditions, and of loops
READS = ("ReadVariableOp", "ResourceGather")
# A value stands for its variable; recomputation adds IdentityN; loops end in Identity in a graph, not in a function.
_SAME = {"ReadVariableOp", "IdentityN", "Identity"}
_NAMES = {
    "shared_name",
    "container",
    "output_shapes",
    "parallel_iterations",
}  # attributes without a meaning here


class Replaced:
    """In the graph of a second run: which of its tensors took the place of which result of an operation."""

    def __init__(self) -> None:
        self.by: dict = {}  # what is used now -> the result
        self.with_: dict = {}

    def add(self, result: tf.Tensor, by: tf.Tensor) -> None:
        self.by.setdefault(by.ref(), result)
        self.with_[result.ref()] = by


class Trace:
    """What was made in graph since it had `before` operations.

    inputs: tensors of the caller's. A second run has the `first`, and those inputs of it that its own stand for.
    """

    def __init__(
        self,
        graph: tf.Graph,
        before: int,
        inputs: Sequence[tf.Tensor],
        first: Trace | None = None,
        stand_for: Sequence[tf.Tensor] = (),
    ):
        self.graph, self.first = graph, first
        self.replaced = getattr(graph, "_blocksparse_replaced", None) or Replaced()
        self.outside: dict = {}  # what was taken from outside: origin -> tensor of this graph
        self.context = graph._get_control_flow_context()
        operations = graph.get_operations()[before:]
        around = _around(self.context)
        outside = {inner.op for _, inner in getattr(graph, "captures", ())} | {x.op for x in inputs}
        outside |= {op for op in operations if _takes_in(op) and op._get_control_flow_context() in around}
        self.operations = [op for op in operations if op not in outside]
        self.inside = set(self.operations)
        self.parts = control_flow.Parts(self.context, self.operations)
        # Whether one of the runs has conditions or loops of TensorFlow 1: then those of both have comparable signs.
        self.coarse: bool = bool(self.parts.of) or (first is not None and first.coarse)
        self.signs, self.draws = Signs(), list[list[tf.Tensor]]()
        for x, other in zip(inputs, stand_for or inputs):
            self.signs.of[x.ref()] = _outside_sign(other)
        initial = self._initial()
        for op in self.operations:
            if op not in initial and op not in self.parts.of:
                self._step(op)

    def check(self, makes_variables: bool) -> None:
        """Raises for what cannot be computed twice."""
        for op in self.operations:
            kinds.check(
                kinds.kind_of(op), op._get_control_flow_context() is not self.context, not makes_variables
            )
            if kinds.takes_functions(op.type):
                for name in kinds.functions_of(op):
                    for kind in set(kinds.inner_kinds(name, self.graph)):
                        kinds.check(kind.split()[0], inside=True)

    def sign(self, x: tf.Tensor) -> int:
        """The sign of a value."""
        x = self._first_of(x)
        if x.op in self.parts.of:
            return self.parts.sign(x.op, self.sign, self.graph)
        if (
            x.op not in self.inside and _takes_in(x.op) and x.op.inputs[0].op in self.inside
        ):  # a condition's own
            return self.sign(x.op.inputs[0])
        if x.ref() not in self.signs.of:
            root = origin(x).ref()
            if x.op not in self.inside:
                self.outside.setdefault(root, x)
            known = self.first and self.first.signs.of.get(
                root
            )  # the first run computed it, and somebody kept it
            self.signs.of[x.ref()] = known or _outside_sign(x)
        return self.signs.of[x.ref()]

    def taken(self, x: tf.Tensor) -> tf.Tensor:
        """This run's tensor for what a second run took from outside."""
        root = origin(x).ref()
        if root in self.outside:
            return self.outside[root]
        if not tf.is_symbolic_tensor(x) or (x.op in self.inside and self._is_leaf(x)):
            return x
        if root in self.signs.of and has_gradient(x) and any(map(has_gradient, self.leaves([x]).values())):
            raise different(
                f"it kept the tensor {x.name} that it computed the first time, and took it from there the second, "
                "where it has no gradient"
            )
        return x

    def leaves(self, results: Sequence[tf.Tensor]) -> dict:
        """What the results depend on that was there before, or was read of variables: origin -> tensor."""
        found, seen, queue = {}, set(), list(results)
        while queue:
            x = self._first_of(queue.pop())
            if x.ref() in seen:
                continue
            seen.add(x.ref())
            if not self._is_leaf(x):
                queue.extend(x.op.inputs)
                continue
            refuse_list(x)
            if has_gradient(x) or variable_dtype(x) is not None:
                x = self.replaced.with_.get(x.ref(), x)
                found[x.ref() if self._is_read(x.op) else origin(x).ref()] = x
        return found

    def reads(self) -> list[tuple[tuple, tf.Tensor]]:
        """What was read of variables: (kind of operation, origin of the handle), and the value.

        Without the read that comes with a variable made here: the second run makes none, and reads once less.
        """
        made: dict = {}
        for op in self.operations:
            if op.type == "ReadVariableOp" and (handle := op.inputs[0].op).type == "VarHandleOp":
                if handle in self.inside:
                    made.setdefault(handle, op)
        reads = [op for op in self.operations if self._is_read(op) and op not in made.values()]
        values = [self.replaced.with_.get(op.outputs[0].ref(), op.outputs[0]) for op in reads]
        return [((op.type, origin(op.inputs[0]).ref()), value) for op, value in zip(reads, values)]

    def _is_read(self, op: tf.Operation) -> bool:
        return op.type in READS and op in self.inside and op._get_control_flow_context() is self.context

    def _first_of(self, x: tf.Tensor) -> tf.Tensor:
        """What x was before a run around this one replaced it."""
        result = self.replaced.by.get(x.ref())
        return x if result is None or result.op not in self.inside else result

    def _is_leaf(self, x: tf.Tensor) -> bool:
        made = x.op in self.inside and x.op.type != "VarHandleOp"
        return not made or self._is_read(x.op) or any(y.dtype._is_ref_dtype for y in x.op.inputs)

    def _initial(self) -> set:
        """The operations that compute the first values of variables made here: the second run makes none."""
        queue = [op for op in self.operations if kinds.is_assignment(op.type)]
        found = set(queue)
        while queue:
            for x in queue.pop().inputs:
                if x.op in self.inside and x.op not in found:
                    found.add(x.op)
                    queue.append(x.op)
        return found

    def _step(self, op: tf.Operation) -> None:
        keys = [y.ref() for y in op.outputs]
        given = [self.sign(x) for x in op.inputs]
        if kinds.is_draw(op.type):
            self.signs.draw(op.type, keys)
            self.draws.append([self.replaced.with_.get(y.ref(), y) for y in op.outputs])
            return
        if op.type in _SAME:
            self.signs.of.update(zip(keys, given))
        elif self.coarse and (sign := self._coarse(op, given)) is not None:
            self.signs.of.update((key, sign) for key in keys)
        elif kinds.is_call(op.type):
            kind, inner = kinds.called(op, self.graph)
            self.signs.step(kind, str(inner), sorted(set(given)), keys)
        else:
            self.signs.step(op.type, _details(op, self.graph), given, keys)

    def _coarse(self, op: tf.Operation, given: Sequence[int]) -> int | None:
        """The sign of what stands for another operation in the other run, else None."""
        if kinds.is_loop_of_tensorflow_1(op.type):
            return given[0]
        if kinds.is_branch(op.type):
            return control_flow.of_functions(op, self.sign, self.graph)
        return control_flow.carried(op, given)


def origin(x: tf.Tensor) -> tf.Tensor:
    """The tensor that x stands for, through all functions, loops and conditions that it was taken into."""
    if tf.is_symbolic_tensor(x) and _takes_in(x.op):
        return origin(x.op.inputs[0])
    for external, internal in getattr(getattr(x, "graph", None), "captures", ()):
        if internal is x:
            return origin(external)
    return x


def _takes_in(op: tf.Operation) -> bool:
    """Whether TensorFlow 1 takes a tensor into a loop or condition by op. A loop's own Switch comes after a Merge."""
    return op.type in _ENTERS or (op.type in _SWITCHES and op.inputs[0].op.type not in _MERGES)


def _outside_sign(x: tf.Tensor) -> int:
    return hash(("outside", origin(x).ref()))


def _around(context: Any) -> list:
    """The TensorFlow 1 loops and conditions around a context, and None around all."""
    found = [context]
    while found[-1] is not None:
        found.append(found[-1].outer_context)
    return found


def _details(op: tf.Operation, graph: tf.Graph) -> tuple:
    """What decides an operation's results besides its arguments; a function, which has another name every time it is
    traced, by what is in it.
    """
    found: list = []
    if kinds.takes_functions(op.type):
        found += [kinds.skeleton(kinds.inner_kinds(name, graph)) for name in kinds.functions_of(op)]
    for name, value in sorted(op.node_def.attr.items()):
        function = value.HasField("func") or value.list.func
        if not function and not name.startswith("_") and name not in _NAMES:
            data = value.SerializeToString(deterministic=True)
            found.append((name, crc32(data), len(data)))
    return tuple(found)
