"""What a recomputed function may hold: kinds of operations that a second run would not simply repeat."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from operator import itemgetter
from typing import Any
from zlib import crc32

import tensorflow as tf
from tensorflow.python.eager import context  # the definitions of functions, which the public interface hides
from tensorflow.python.framework import op_def_registry

# Operations that give something else when they run again: what they gave is kept, and given again.
_DRAWS = re.compile(
    r"(Parameterized)?(Random|TruncatedNormal|Multinomial)|Stateful(Random|Standard|Truncated|Uniform)|RngReadAndSkip$"
    r"|NonDeterministicInts$|Timestamp$|PyFunc$|SampleDistorted|IteratorGetNext|Queue.*Dequeue|.*CandidateSampler$"
    r"|LookupTable(Find|Size|Export)|(OrderedMap|Map)?(Unstage|StagePeek|StageSize)|(OrderedMap|Map)(Peek|Size)$|StackPop"
)
# The same, but with a gradient, which would be lost with what is kept.
_LOST = {
    "EagerPyFunc": "tf.py_function",
    "RandomGamma": "tf.random.gamma",
    "FractionalMaxPool": "tf.nn.fractional_max_pool without a seed",
    "FractionalAvgPool": "tf.nn.fractional_avg_pool without a seed",
}
_SEEDED = "deterministic"  # the attribute by which the pools among them draw the same every time
_ASSIGNS = re.compile(
    r"Assign(Add|Sub)?$|Assign\w*VariableOp$|(Resource)?(Sparse)?Apply|ResourceScatter|Scatter\w*$|ResourceCountUpTo$"
    r"|ResourceStridedSliceAssign$|LookupTable(Insert|Remove|Import)|InitializeTable"
)
_CALLS = re.compile(r"(Stateful)?PartitionedCall$|(Stateless)?(If|While|Case)$")
_WRAPPER = "cflow_gradient_wrapper"  # TensorFlow's function around a condition or loop that several tapes see
_LOOPS = {"Enter", "RefEnter", "Exit", "RefExit", "Switch", "RefSwitch", "Merge", "RefMerge", "NextIteration",
          "LoopCond"}  # fmt: skip
_SAME = re.compile(
    r"ReadVariableOp$|ResourceGather$|GatherV2$|Identity|Placeholder$|NoOp$|FakeParam$|ZerosLike$"
    r"|Optional(None|FromValue)$|Empty\w*List|\w*TensorList"
)


class Refused(ValueError):
    """A recomputed function that cannot be computed twice to the same effect."""

    __init__ = Exception.__init__  # what AutoGraph asks for, else it raises an error of its own instead


def is_draw(kind: str) -> bool:
    """Whether an operation gives something else when it runs again."""
    return _DRAWS.match(kind) is not None and _definition(kind).is_stateful


def is_assignment(kind: str) -> bool:
    """Whether an operation changes a variable."""
    if _ASSIGNS.match(kind) is None:
        return False
    return any(x.is_ref or x.type == tf.resource.as_datatype_enum for x in _definition(kind).input_arg)


def is_call(kind: str) -> bool:
    """Whether an operation runs functions: a call, condition or loop."""
    return _CALLS.match(kind) is not None


def is_branch(kind: str) -> bool:
    """Whether an operation is a condition or loop, which runs functions."""
    return is_call(kind) and not kind.endswith("PartitionedCall")


@lru_cache(maxsize=4096)
def takes_functions(kind: str) -> bool:
    """Whether an operation has functions among its attributes: those that run some, and those of tf.data."""
    definition = _definition(kind)
    return definition is not None and any(attr.type in ("func", "list(func)") for attr in definition.attr)


def is_function(kind: str) -> bool:
    """Whether kind is no operation of TensorFlow's, but the name of a function, as eager execution says it."""
    return _definition(kind) is None


def is_loop_of_tensorflow_1(kind: str) -> bool:
    """Whether an operation is part of a condition or loop without control flow v2."""
    return kind in _LOOPS


def check(kind: str, inside: bool, assignments: bool = True) -> None:
    """Raises Refused for what cannot be computed twice. inside: in control flow or in a tf.function."""
    if assignments and is_assignment(kind):
        if "Table" in kind:
            raise Refused(
                f"a recomputable function changed a table ({kind}), which the backward pass would do again; do that "
                "outside"
            )
        raise Refused(
            "a recomputable function made or assigned a variable, which the backward pass would do again; "
            "do that outside (Keras's Dropout keeps its seed in a variable: use tf.nn.dropout or "
            "tf.nn.experimental.stateless_dropout)"
        )
    if inside and is_draw(kind):
        if "Table" in kind:
            raise Refused(
                f"a recomputable function ran {kind} inside control flow or a tf.function, where what a table gave "
                "cannot be kept for the backward pass, which may find another; look it up outside of that"
            )
        raise Refused(
            f"a recomputable function ran {kind} inside control flow or a tf.function, where the draw cannot be "
            "kept for the backward pass; draw statelessly there (tf.nn.experimental.stateless_dropout, "
            "tf.random.stateless_uniform)"
        )
    if kind in _LOST:
        raise Refused(
            f"a recomputable function ran {_LOST[kind]}, which would give another result in the backward pass, "
            "and whose first result cannot be kept with its gradient; call it outside and give its result as an "
            "argument"
        )


def functions_of(operation: tf.Operation) -> list[str]:
    """The names of the functions that an operation of a graph calls."""
    return list(_functions_of(operation.node_def))


def called(operation: tf.Operation, graph: tf.Graph) -> tuple[str, tuple[str, ...]]:
    """An operation that runs functions: its kind, and those of all operations in them. A condition or loop that stands
    in a function of TensorFlow's own, under several tapes, counts as if it stood there itself.
    """
    found = tuple(map(described, with_inner(operation, graph)))
    if _is_wrapper(operation.node_def):
        found = found[next(number for number, kind in enumerate(found) if is_branch(kind)) :]
    return re.sub("State(less|ful)", "", found[0]), skeleton(found[1:])


def inner_kinds(name: str, graph: tf.Graph | None) -> tuple[str, ...]:
    """The kinds of all operations in a function and in those that it calls, in order."""
    return _eager_kinds(name) if graph is None else tuple(map(described, _nodes_of(name, graph)))


def with_inner(operation: tf.Operation, graph: tf.Graph) -> Iterator[Any]:
    """The definitions of an operation of a graph, and of those in the functions that it calls."""
    return _walk([operation.node_def], graph)


@lru_cache(maxsize=4096)
def _eager_kinds(name: str) -> tuple[str, ...]:
    return tuple(map(described, _nodes_of(name, None)))


def _nodes_of(name: str, graph: tf.Graph | None) -> Iterator[Any]:
    outer = graph
    while outer is not None:
        if (function := outer._get_function(name)) is not None:
            definition = getattr(function, "cached_definition", None) or function.definition
            return _walk(_nodes(definition), outer)
        outer = getattr(outer, "outer_graph", None)
    return _walk(_nodes(context.get_function_def(name)), None)


def _nodes(definition: Any) -> list:
    """A function's nodes, less the constants that its lists alone take: sizes, in a loop that is differentiated."""
    takers: dict = {}
    for node in definition.node_def:
        for given in node.input:
            takers.setdefault(given.partition(":")[0].lstrip("^"), []).append(node.op)
    takers.update({given.partition(":")[0]: ["result"] for given in definition.ret.values()})
    return [
        node
        for node in definition.node_def
        if node.op != "Const" or not all("TensorList" in kind for kind in takers.get(node.name, ["nobody"]))
    ]


def _walk(nodes: Any, graph: tf.Graph | None) -> Iterator[Any]:
    for node in nodes:
        if not _is_wrapper(node):
            yield node
        for name in _functions_of(node):
            yield from _nodes_of(name, graph)


def _is_wrapper(node: Any) -> bool:
    return node.op.endswith("PartitionedCall") and _WRAPPER in node.attr["f"].func.name


def described(node: Any) -> str:
    """The kind of a node; of a constant, with its value."""
    if node.op == "Const":
        return f"Const {crc32(node.attr['value'].SerializeToString())}"
    return seeded(node.op, node.op in _LOST and node.attr[_SEEDED].b)


def seeded(kind: str, deterministic: bool) -> str:
    """The kind, with a mark where it draws the same every time."""
    return f"{kind}({_SEEDED})" if deterministic else kind


def kind_of(operation: tf.Operation) -> str:
    """The kind of an operation of a graph."""
    return described(operation.node_def) if operation.type in _LOST else operation.type


def kind_with(kind: str, attrs: tuple) -> str:
    """The kind of an operation that runs eagerly. attrs: names and values, in turn."""
    return seeded(kind, kind in _LOST and dict(zip(attrs[::2], attrs[1::2])).get(_SEEDED, False))


def _functions_of(node: Any) -> Iterator[str]:
    """The names of the functions in a node's attributes, in the order of the attributes' names.

    A protocol buffer's map has another order in every process, and may have another in every message.
    """
    for _, value in sorted(node.attr.items(), key=itemgetter(0)):
        for function in [value.func] if value.HasField("func") else value.list.func:
            yield function.name


def skeleton(kinds: tuple[str, ...]) -> tuple[str, ...]:
    """kinds without those by which reading a variable may differ from having its value, or a condition or loop that has
    to be differentiated from one that has not."""
    return tuple(kind for kind in kinds if not _SAME.match(kind))


def plain_name(function: str) -> str:
    """The name that a function had in Python."""
    return re.sub(r"^__(inference|forward|backward)_(.*)_\d+$", r"\2", function)


@lru_cache(maxsize=4096)
def _definition(kind: str) -> Any:
    return op_def_registry.get(kind)
