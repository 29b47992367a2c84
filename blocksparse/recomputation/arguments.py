"""The arguments of a call, as the run that repeats it gets them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from types import GeneratorType
from typing import Any, NamedTuple

import tensorflow as tf

from . import kinds

_ONCE: tuple[type, ...] = (GeneratorType, map, filter, zip, enumerate, type(reversed([])))


def tensors(structure: Any) -> list[tf.Tensor]:
    """All tensors of something nested, those of ragged and sparse ones included."""
    return [x for x in tf.nest.flatten(structure, expand_composites=True) if isinstance(x, tf.Tensor)]


def copied(args: Any) -> Any:
    """args with lists, tuples and dicts of their own."""
    return tf.nest.map_structure(lambda x: x, args)


class Given(NamedTuple):
    """Something nested in the arguments: the caller's own, the copy that a run gets, and what that held."""

    own: Any
    copy: Any
    held: list


def nested(own: Any, copy: Any) -> Iterator[Given]:
    """All that is nested in something and in its copy: lists, tuples, dicts and what they hold."""
    held = _contents(copy)
    yield Given(own, copy, held)
    for one, other in zip(_contents(own), held):
        yield from nested(one, other)


def carry_back(given: Sequence[Given]) -> None:
    """Changes the caller's own lists and dicts as a run has changed their copies; given: from before it ran. What the
    run was given it leaves there as the caller's own.
    """
    own_of = {id(each.copy): each.own for each in given}
    for own, copy, held in given:
        now = _contents(copy)
        if own is copy or (len(now) == len(held) and all(x is y for x, y in zip(now, held))):
            continue
        if isinstance(own, list):
            own[:] = [own_of.get(id(x), x) for x in copy]
        elif isinstance(own, MutableMapping):
            items = {name: own_of.get(id(x), x) for name, x in copy.items()}
            own.clear()
            own.update(items)


def _contents(x: Any) -> list:
    """What a list or tuple holds, a dict's names and values; of anything else nothing."""
    if isinstance(x, Mapping):
        return [*x, *x.values()]
    return [*x] if isinstance(x, (list, tuple)) else []


def refuse_iterators(args: Any) -> None:
    """Raises for an argument that is at its end when the function runs again."""
    for x in tf.nest.flatten(args):
        if isinstance(x, _ONCE):
            raise kinds.Refused(
                f"an argument of a recomputable function is a {type(x).__name__}, which can be gone through once, and "
                "the function runs twice; give it as a list"
            )
