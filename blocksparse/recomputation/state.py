"""What a second run of a function has to find as the first did: generators, scopes and Keras's own state."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import (
    context,
)  # eager execution draws the seeds of its operations from a generator

from ..utils import entropy_position


class State:
    """What surrounds a function when it runs: for `again`, which runs it in the same surroundings."""

    def __init__(self) -> None:
        self._values = [(put, get()) for get, put in _GENERATORS]
        self._scope = None
        if not tf.executing_eagerly():
            self._scope = tf.compat.v1.get_variable_scope()

    @contextmanager
    def again(self, reuse: bool) -> Iterator[None]:
        """Puts everything back as it was, and afterwards as it is now. reuse: tf.get_variable makes none."""
        now = [(put, get()) for get, put in _GENERATORS]
        try:
            for put, value in self._values:
                put(value)
            if self._scope is None:
                yield
            else:
                with tf.compat.v1.variable_scope(
                    self._scope, reuse=reuse or self._scope.reuse, auxiliary_name_scope=False
                ):
                    yield
        finally:
            for put, value in now:
                put(value)


def _eager_seeds() -> Any:
    generator = getattr(context.context(), "_rng", None)
    return generator.getstate() if generator else None


def _put_eager_seeds(state: Any) -> None:
    if state is not None:
        context.context()._rng.setstate(state)


def _keras() -> dict | None:
    """Keras's state of this thread: whether layers train, cast their weights, and so on."""
    module = sys.modules.get("keras.src.backend.common.global_state")
    return vars(module.GLOBAL_STATE_TRACKER) if hasattr(module, "GLOBAL_STATE_TRACKER") else None


def _keras_state() -> dict | None:
    state = _keras()
    return None if state is None else dict(state)


def _put_keras_state(saved: dict | None) -> None:
    state = _keras()
    if state is not None and saved is not None:
        state.clear()
        state.update(saved)


_GENERATORS: list[tuple[Callable, Callable]] = [
    (random.getstate, random.setstate),
    (np.random.get_state, np.random.set_state),
    (_eager_seeds, _put_eager_seeds),
    (_keras_state, _put_keras_state),
    (entropy_position, lambda put: put()),
]
