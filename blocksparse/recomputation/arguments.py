"""The arguments of a call, as the run that repeats it gets them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from types import GeneratorType
from typing import Any

import tensorflow as tf

from . import kinds

_ONCE: tuple[type, ...] = (GeneratorType, map, filter, zip, enumerate, type(reversed([])))


def tensors(structure: Any) -> list[tf.Tensor]:
    """All tensors of something nested, those of ragged and sparse ones included."""
    return [x for x in tf.nest.flatten(structure, expand_composites=True) if isinstance(x, tf.Tensor)]


def with_own(kept: Any, own: Any) -> tuple[list, dict]:
    """kept, both (positional ones, keywords), but the caller's own object for an argument that holds no tensors: the
    function may fill a list.
    """
    (args, kwargs), (own_args, own_kwargs) = kept, own
    return (
        [x if tensors(x) else mine for x, mine in zip(args, own_args)],
        {name: x if tensors(x) else own_kwargs[name] for name, x in kwargs.items()},
    )


def pairs(own: Any, copy: Any) -> Iterator[tuple[Any, Any]]:
    """All that is nested in something and in its copy: each list, tuple, dict and leaf beside the copy's."""
    yield own, copy
    both: Any = ()
    if isinstance(own, Mapping):
        both = ((x, copy[name]) for name, x in own.items())
    elif isinstance(own, (list, tuple)):
        both = zip(own, copy)
    for one, other in both:
        yield from pairs(one, other)


def carry_back(given: Sequence[tuple[Any, Any]]) -> None:
    """Changes the caller's own lists and dicts as the function has changed their copies; given: pairs from before it
    ran. What it was given it leaves there as the caller's own.
    """
    own_of = {id(copy): own for own, copy in given}
    for own, copy in given:
        if own is copy:
            continue
        if isinstance(own, list):
            now = [own_of.get(id(x), x) for x in copy]
            if len(now) != len(own) or any(x is not y for x, y in zip(own, now)):
                own[:] = now
        elif isinstance(own, MutableMapping):
            items = {name: own_of.get(id(x), x) for name, x in copy.items()}
            if list(items) != list(own) or any(x is not own[name] for name, x in items.items()):
                own.clear()
                own.update(items)


def refuse_iterators(args: Any) -> None:
    """Raises for an argument that is at its end when the function runs again."""
    for x in tf.nest.flatten(args):
        if isinstance(x, _ONCE):
            raise kinds.Refused(
                f"an argument of a recomputable function is a {type(x).__name__}, which can be gone through once, and "
                "the function runs twice; give it as a list"
            )
