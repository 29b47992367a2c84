"""The arguments of a call, as the run that repeats it gets them."""

from __future__ import annotations

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


def refuse_iterators(args: Any) -> None:
    """Raises for an argument that is at its end when the function runs again."""
    for x in tf.nest.flatten(args):
        if isinstance(x, _ONCE):
            raise kinds.Refused(
                f"an argument of a recomputable function is a {type(x).__name__}, which can be gone through once, and "
                "the function runs twice; give it as a list"
            )
