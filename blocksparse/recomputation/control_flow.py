"""The signs of conditions and loops where one of two runs has TensorFlow 1's: operations like others, no functions.

The second run is a graph function, and has functions in their place. What both ways of building have in common is
what the sign is made of: the operations inside, without what carries values in, around and out, and what the whole
takes from outside.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from . import kinds

# What carries values alone, and the arguments of such operations that are values and not their places.
_CARRIES = ("TensorArray", "TensorList")
_VALUES = {"value", "item", "tensor", "flow_in", "input_handle"}
_EMPTY = hash("a list without values")
# Each way of building finds the places in its lists, and counts its turns, in its own way.
_PLACES, _COUNTS = {"Const", "Range", "StridedSlice"}, {"AddV2", "Less"}


class Parts:
    """TensorFlow 1's conditions and loops among operations, each whole with what is inside it."""

    def __init__(self, context: Any, operations: Sequence[tf.Operation]):
        self.context = context
        self.of: dict[tf.Operation, Any] = {}  # an operation -> the outermost context it is in, below context
        for op in operations:
            if (outermost := self._outermost(op)) is not None:
                self.of[op] = outermost
        self.joined: dict = {}  # the other branch of a condition
        for op in operations:
            if op.type == "Merge" and op not in self.of:
                branches = [self.of[x.op] for x in op.inputs if x.op in self.of]
                self.joined.update((branch, branches[0]) for branch in branches)
        self.whole: dict = defaultdict(list)
        for op, outermost in self.of.items():
            self.whole[self.joined.get(outermost, outermost)].append(op)
        self.signs: dict = {}

    def sign(self, op: tf.Operation, sign: Callable[[tf.Tensor], int], graph: tf.Graph) -> int:
        """The sign of the condition or loop that op is in. sign: that of a value outside."""
        key = self.joined.get(self.of[op], self.of[op])
        if key not in self.signs:
            inside = set(self.whole[key])
            taken = [x for op in inside for x in op.inputs if x.op not in inside]
            taken += [context.pred for context in {self.of[op] for op in inside} if hasattr(context, "pred")]
            self.signs[key] = _sign(_kinds_of(inside, graph), taken, sign)
        return self.signs[key]

    def _outermost(self, op: tf.Operation) -> Any:
        found, context = None, op._get_control_flow_context()
        while context is not None and context is not self.context:
            found, context = context, context.outer_context
        return found if context is self.context else None


def of_functions(op: tf.Operation, sign: Callable[[tf.Tensor], int], graph: tf.Graph) -> int:
    """The sign of a condition or loop that has functions."""
    return _sign(_kinds_of([op], graph), op.inputs, sign)


def carried(op: tf.Operation, given: Sequence[int]) -> int | None:
    """The sign of what a list or array of tensors holds or gives; None for an operation on anything else."""
    if not op.type.startswith(_CARRIES):
        return None
    values = {x for x, argument in zip(given, op.op_def.input_arg) if argument.name in _VALUES} - {_EMPTY}
    if len(values) < 2:
        return next(iter(values), _EMPTY)
    return hash(tuple(sorted(values)))


def _sign(inside: Iterable[str], taken: Sequence[tf.Tensor], sign: Callable[[tf.Tensor], int]) -> int:
    tells = [x for x in taken if x.dtype.is_floating or x.dtype.is_complex or x.op.type not in _PLACES]
    return hash(("control flow", tuple(sorted(inside)), tuple(sorted({sign(x) for x in tells} - {_EMPTY}))))


def _kinds_of(operations: Iterable[tf.Operation], graph: tf.Graph) -> Iterator[str]:
    """The kinds of operations that compute something, with those in functions that they call."""
    for op in operations:
        for node in kinds.with_inner(op, graph):
            carries = (
                kinds.is_loop_of_tensorflow_1(node.op)
                or kinds.is_call(node.op)
                or not kinds.skeleton((node.op,))
            )
            if not (carries or node.op.startswith(_CARRIES) or _is_count(node)):
                yield kinds.described(node)


def _is_count(node: Any) -> bool:
    types = [node.attr[name].type for name in ("T", "dtype", "Tidx") if name in node.attr]
    return node.op in _PLACES | _COUNTS and tf.as_dtype(types[0]).is_integer
