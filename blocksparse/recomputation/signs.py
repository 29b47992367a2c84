"""Comparing two runs of a function: a sign for each value, made of the operation that gave it and what that took.

Two runs agree where their results have the same signs: the same operations on the same values, in whatever order,
and however much else was computed (or found computed) on the way.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf


class Different(ValueError):
    """The second run of a recomputed function did something else than the first."""

    __init__ = Exception.__init__  # what AutoGraph asks for, else it raises an error of its own instead


def different(what: str) -> Different:
    """The error; what: the difference."""
    return Different(
        f"a recomputed function did not do the same when it ran again for its gradient: {what}. Whatever its code "
        "depends on (counters, flags, lists, other generators than Python's and NumPy's global ones) has to be the "
        "same both times: decide outside, and give the decision as an argument"
    )


class Signs:
    """The signs of one run. Values are known by a key of the caller's."""

    def __init__(self) -> None:
        self.of: dict[Any, int] = {}
        self.steps: list[tuple[str, int]] = []  # for the error: each operation with its sign
        self.draws = 0

    def step(self, kind: str, details: Any, inputs: list[int], outputs: list[Any]) -> int:
        """Notes an operation; outputs: the keys of what it gives."""
        sign = hash((kind, details, tuple(inputs)))
        self.steps.append((kind, sign))
        for place, key in enumerate(outputs):
            self.of[key] = hash((sign, place))
        return sign

    def draw(self, kind: str, outputs: list[Any]) -> int:
        """Notes an operation that the second run gets the result of; returns its number."""
        self.draws += 1
        self.step(kind, ("draw", self.draws), [], outputs)
        return self.draws - 1


def compare(first: Signs, second: Signs, results: list[tuple[int, int]], complete: bool = True) -> None:
    """Raises Different unless the results' signs are equal in pairs, and names the first operation that differs.

    complete: whether the second run has everything that is wanted of it. It may draw less than the first where it
    keeps what that drew (a dropout mask, say), which only equal results can tell.
    """
    equal = complete and all(one == other for one, other in results)
    if equal and (first.draws == second.draws or (results and second.draws < first.draws)):
        return
    if first.draws != second.draws:
        raise different(
            f"it drew {first.draws} random tensors the first time and {second.draws} the second (what "
            "tf.vectorized_map draws cannot be kept: draw outside of it, or statelessly)"
        )
    for number, (one, other) in enumerate(zip(first.steps, second.steps)):
        if one[0] != other[0]:
            raise different(f"operation {number} was {one[0]} the first time and {other[0]} the second")
        if one[1] != other[1]:
            raise different(f"operation {number}, {one[0]}, had other arguments the second time")
    raise different(
        f"it ran {len(first.steps)} operations the first time and {len(second.steps)} the second, or returned "
        "others of their results"
    )


def outline(result: Any) -> Any:
    """A result's structure: the dtype of each tensor, those of a ragged or sparse one, None for anything else."""

    def leaf(y):
        parts = [x for x in tf.nest.flatten(y, expand_composites=True) if isinstance(x, tf.Tensor)]
        if isinstance(y, tf.Tensor) or not parts:
            return parts[0].dtype.name if parts else None
        return f"{type(y).__name__} of {', '.join(x.dtype.name for x in parts)}"

    return tf.nest.map_structure(leaf, result)


def compare_structures(first: Any, second: Any) -> None:
    """Raises Different unless two outlines are equal."""
    try:
        tf.nest.assert_same_structure(first, second)
    except (TypeError, ValueError) as error:
        raise different(f"its result had another structure ({str(error).splitlines()[0]})") from None
    for one, other in zip(tf.nest.flatten(first), tf.nest.flatten(second)):
        if one != other:
            raise different(
                f"it returned {one or 'no tensor'} the first time and {other or 'no tensor'} the second"
            )
