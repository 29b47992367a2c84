"""Seeds for random ops that a recomputation must repeat."""

from __future__ import annotations

import contextlib
import itertools
import threading
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from .tensors import TensorLike

_eager = types.SimpleNamespace()
_local = threading.local()


def _home() -> Any:
    """What keeps the entropy: the graph that variables are made in now, one object for all where they are eager."""
    with tf.init_scope():
        return _eager if tf.executing_eagerly() else tf.compat.v1.get_default_graph()


def _entropy() -> tuple[tf.Variable, Iterator[int]] | None:
    """The seed, and a number for each call that draws from it, so that no two draw alike."""
    return getattr(_home(), "_blocksparse_entropy", None)


def set_entropy(init: TensorLike = None) -> None:
    """Seeds dropout in the current graph (or, eagerly, in the process).

    init: an array of at least 16 bytes, of which the first 16 are the seed; None draws them from NumPy's
    generator, so `np.random.seed(rank)` before it gives every rank its own masks, the same on every run.
    Makes a variable "Entropy" (int64 [2], not trainable) that a TensorFlow 1 graph must initialise.
    """
    if init is None:
        init = np.random.randint(-(2**63), 2**63 - 1, size=2, dtype=np.int64)
    words = np.ascontiguousarray(init).tobytes()[:16]
    if len(words) < 16:
        raise ValueError(f"init has {len(words)} bytes, but a seed needs 16: pass two int64, or None")
    with tf.init_scope(), tf.device("/cpu:0"):
        seed = tf.compat.v1.Variable(np.frombuffer(words, np.int64), trainable=False, name="Entropy")
    _home()._blocksparse_entropy = (seed, itertools.count(1))


def get_entropy() -> tf.Variable:
    """The variable that set_entropy() made here. Raises ValueError when it was not called."""
    if (entropy := _entropy()) is None:
        raise ValueError("no entropy in this graph: call blocksparse.set_entropy() while building it")
    return entropy[0]


class Seeds:
    """The seeds that a function drew, in order, so that running it again draws the same ones."""

    def __init__(self) -> None:
        self._drawn: list[tf.Tensor] = []
        self._again: Iterator[tf.Tensor] | None = None

    @contextlib.contextmanager
    def record(self) -> Iterator[None]:
        """Notes what draw_seed() returns."""
        with self._entered():
            yield

    @contextlib.contextmanager
    def replay(self) -> Iterator[None]:
        """Makes draw_seed() return what was noted."""
        self._again = iter(self._drawn)
        try:
            with self._entered():
                yield
        finally:
            self._again = None

    @contextlib.contextmanager
    def _entered(self) -> Iterator[None]:
        stack = _stack()
        stack.append(self)
        try:
            yield
        finally:
            stack.pop()


def _stack() -> list[Seeds]:
    if not hasattr(_local, "seeds"):
        _local.seeds = []
    return _local.seeds


def draw_seed() -> tf.Tensor:
    """A seed for TensorFlow's stateless random ops, int64 [2]: new on every run of the op, the same in a
    recomputation.

    With set_entropy() it is a function of that seed, of the call's number in the program and of how often it
    ran; without, TensorFlow's own seeds decide.
    """
    stack = _stack()
    replaying = next((i for i in reversed(range(len(stack))) if stack[i]._again is not None), None)
    if replaying is None:
        seed, recorders = _fresh_seed(), stack
    else:
        seed = next(stack[replaying]._again, None)  # type: ignore[arg-type]
        if seed is None:
            raise ValueError("a recomputed function drew more random numbers the second time than the first")
        recorders = stack[replaying + 1 :]
    for seeds in recorders:
        seeds._drawn.append(seed)
    return seed


def _fresh_seed() -> tf.Tensor:
    entropy = _entropy()
    with tf.device("/cpu:0"):
        if entropy is None:
            return tf.random.uniform([2], -(2**62), 2**62, dtype=tf.int64)
        base, numbers = entropy
        draw = tf.random.uniform([2], -(2**62), 2**62, dtype=tf.int64, seed=next(numbers))
        return tf.bitwise.bitwise_xor(draw, tf.convert_to_tensor(base))


def ceil_div(x: int, y: int) -> int:
    """x / y, rounded up."""
    return -(-x // y)
