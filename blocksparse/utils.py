"""Seeds for random ops."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from .tensors import TensorLike

_eager = types.SimpleNamespace()


def _home() -> Any:
    """What keeps the entropy: the graph that variables are made in now, one object for all where they are eager."""
    with tf.init_scope():
        return _eager if tf.executing_eagerly() else tf.compat.v1.get_default_graph()


def _entropy() -> tuple[tf.Variable, list[int]] | None:
    """The seed, and the number of the next call that draws from it: no two draw alike."""
    return getattr(_home(), "_blocksparse_entropy", None)


def entropy_position() -> Callable[[], None]:
    """What puts the calls' number back to what it is now, so that a second run numbers its draws as the first."""
    numbers = (_entropy() or (None, [0]))[1]
    now = numbers[0]

    def put() -> None:
        numbers[0] = now

    return put


def set_entropy(init: TensorLike = None) -> None:
    """Seeds dropout in the current graph (or, eagerly, in the process).

    init: an array of at least 16 bytes, of which the first 16 are the seed; None draws them from NumPy's
    generator, so `np.random.seed(rank)` before it gives every rank its own masks, the same on every run.
    Makes a variable "Entropy" (int64 [2], not trainable) that a TensorFlow 1 graph must initialise.
    """
    if init is None:
        init = np.random.randint(-(2**63), 2**63 - 1, size=2, dtype=np.int64)
    if tf.is_tensor(init) and not tf.executing_eagerly():
        raise TypeError(f"init is a {type(init).__name__} of a graph; pass an array of two int64, or None")
    words = np.ascontiguousarray(init).tobytes()[:16]
    if len(words) < 16:
        raise ValueError(f"init has {len(words)} bytes, but a seed needs 16: pass two int64, or None")
    with tf.init_scope(), tf.device("/cpu:0"):
        seed = tf.compat.v1.Variable(np.frombuffer(words, np.int64), trainable=False, name="Entropy")
    _home()._blocksparse_entropy = (seed, [1])


def get_entropy() -> tf.Variable:
    """The variable that set_entropy() made here. Raises ValueError when it was not called."""
    if (entropy := _entropy()) is None:
        raise ValueError("no entropy in this graph: call blocksparse.set_entropy() while building it")
    return entropy[0]


def draw_seed() -> tf.Tensor:
    """A seed for TensorFlow's stateless random ops, int64 [2]: new on every run of the op, the same in a
    recomputation.

    With set_entropy() it is a function of that seed, of the call's number in the program and of how often it
    ran; without, TensorFlow's own seeds decide.
    """
    entropy = _entropy()
    with tf.device("/cpu:0"):
        if entropy is None:
            return tf.random.uniform([2], -(2**62), 2**62, dtype=tf.int64)
        base, numbers = entropy
        draw = tf.random.uniform([2], -(2**62), 2**62, dtype=tf.int64, seed=numbers[0])
        numbers[0] += 1
        return tf.bitwise.bitwise_xor(draw, tf.convert_to_tensor(base))
