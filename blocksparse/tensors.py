"""Small TensorFlow helpers that several modules share."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

TensorLike = Any  # tensor, variable, array or number
# AutoGraph would rewrite the planner too, for seconds: for what does not branch on the value of a tensor.
do_not_convert = tf.autograph.experimental.do_not_convert


def as_bool(x: np.ndarray) -> tf.Tensor:
    """A tensor of a bool array. A graph's bool constants are made element by element in Python, bytes at once."""
    return tf.cast(x.view(np.uint8), tf.bool)


def as_float32(x: TensorLike) -> tf.Tensor:
    """x as a float32 tensor."""
    return tf.cast(tf.convert_to_tensor(x), tf.float32)


def same_float32(compute: Any, x: tf.Tensor, *more: tf.Tensor) -> tf.Tensor:
    """compute(x, *more) in float32, rounded once, to x's dtype."""
    return tf.cast(compute(*map(as_float32, (x, *more))), x.dtype)
