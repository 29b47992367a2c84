"""Tensors whose gradient is a Python function, with the identity as the gradient that a saved graph knows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

# tf.custom_gradient writes a name into the graph that no other process knows; these do without one.
from tensorflow.python.eager import record

from ..tensors import do_not_convert

NO_SECOND = (
    "the gradient of a recomputed function cannot be differentiated again; call the function with "
    "recompute=False where second or forward-mode derivatives are needed"
)


class NoSecondDerivative(LookupError):
    """Raised where the gradient of a recomputed function is differentiated."""

    __init__ = Exception.__init__  # what AutoGraph asks for, else it raises an error of its own instead


def has_gradient(x: tf.Tensor) -> bool:
    """Whether x is of a dtype that gradients go through."""
    return x.dtype.is_floating or x.dtype.is_complex


def attach(outputs: Sequence[tf.Tensor], sources: Sequence[tf.Tensor], gradient: Callable) -> list[tf.Tensor]:
    """The outputs, as if computed from the sources in one step: gradient(*dys) gives the gradient of each source.

    In a graph the step is an IdentityN over both. Whoever does not know its gradient function (a loaded graph, a
    SavedModel) takes the identity's: through the operations that made the outputs, to the same numbers.
    """
    if not outputs:
        return []

    @do_not_convert
    def backward(*dys):
        return gradient(*dys[: len(outputs)])

    if tf.executing_eagerly():
        with record.stop_recording():
            made = [tf.identity(x) for x in outputs]
        record.record_operation("Recomputed", made, list(sources), backward)
        return made

    graph = tf.compat.v1.get_default_graph()

    @do_not_convert
    def gradient_of_operation(_, *dys):
        return [None] * len(outputs) + backward(*dys)

    with record.stop_recording(), graph._override_gradient_function({"IdentityN": gradient_of_operation}):
        made = tf.raw_ops.IdentityN(input=[*outputs, *sources])[: len(outputs)]
    record.record_operation("Recomputed", made, list(sources), backward)
    return made


class Asked:
    """Which of a step's results a backward pass asks for.

    TensorFlow gives the gradient of a step zeros for a result that the loss does not use, as if it did; what only that
    result depends on would then get zeros instead of None, with which an optimizer goes on moving it.
    """

    def __init__(self) -> None:
        self._places: set[int] = set()

    def note(self, place: int, dy: Any) -> list:
        """The gradient of result `place`: what is given for it."""
        self._places.add(place)
        return [dy]

    def taken(self, dys: Sequence[Any]) -> list[int]:
        """The places of the results that this pass asked for: those noted since the last one, where any was."""
        noted, self._places = self._places, set()
        return [
            place for place, dy in enumerate(dys) if dy is not None and place in (noted or range(len(dys)))
        ]


def with_gradient(compute: Callable, *sources: Any) -> tf.Tensor:
    """y of `y, gradient = compute(*sources)`, where gradient(dy) gives those of the sources.

    As tf.custom_gradient, but what saved and imported graphs know is the gradient of compute's own operations.
    """
    tensors = [tf.convert_to_tensor(x) for x in sources]
    with record.stop_recording():
        y, gradient = compute(*tensors)
    return attach([y], tensors, lambda dy: list(gradient(dy)))[0]


def once(gradients: list, sources: Sequence[tf.Tensor], words: str = NO_SECOND) -> list:
    """gradients, which refuse to be differentiated, in these words. sources: what they were computed from."""

    def refuse(*_):
        raise NoSecondDerivative(words)

    parts = tf.nest.flatten(gradients, expand_composites=True)
    places = [i for i, x in enumerate(parts) if x is not None and has_gradient(x)]
    made = attach([parts[i] for i in places], sources, refuse)
    for i, x in zip(places, made):
        parts[i] = x
    return tf.nest.pack_sequence_as(gradients, parts, expand_composites=True)
