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
    """Something nested in the arguments: the caller's own, the copy that a run gets, and what a list or dict held."""

    own: Any
    copy: Any
    held: Any


def nested(own: Any, copy: Any) -> Iterator[Given]:
    """All that is nested in something and in its copy: lists, tuples, dicts and what they hold."""
    both: Any = ()
    if isinstance(own, Mapping):
        yield Given(own, copy, dict(copy))
        both = ((x, copy[name]) for name, x in own.items())
    elif isinstance(own, (list, tuple)):
        yield Given(own, copy, list(copy))
        both = zip(own, copy)
    else:
        yield Given(own, copy, None)
    for one, other in both:
        yield from nested(one, other)


def carry_back(given: Sequence[Given]) -> None:
    """Changes the caller's own lists and dicts as a run has changed their copies; given: from before it ran. What the
    run was given it leaves there as the caller's own.
    """
    own_of = {id(each.copy): each.own for each in given}
    for own, copy, held in given:
        if own is copy:
            continue
        if isinstance(own, list) and not _same(copy, held):
            own[:] = [own_of.get(id(x), x) for x in copy]
        elif isinstance(own, MutableMapping) and not (
            list(copy) == list(held) and _same([*copy.values()], [*held.values()])
        ):
            items = {name: own_of.get(id(x), x) for name, x in copy.items()}
            own.clear()
            own.update(items)


def _same(one: Sequence[Any], other: Sequence[Any]) -> bool:
    return len(one) == len(other) and all(x is y for x, y in zip(one, other))


def refuse_iterators(args: Any) -> None:
    """Raises for an argument that is at its end when the function runs again."""
    for x in tf.nest.flatten(args):
        if isinstance(x, _ONCE):
            raise kinds.Refused(
                f"an argument of a recomputable function is a {type(x).__name__}, which can be gone through once, and "
                "the function runs twice; give it as a list"
            )
