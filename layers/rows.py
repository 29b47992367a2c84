"""What a residual block computes of its rows between two products, and how XLA is told to compute it."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf
from tensorflow.compiler.tf2xla.python import xla

from blocksparse.native.devices import in_xla


def wide(x: tf.Tensor) -> tf.Tensor:
    return tf.cast(x, tf.float32)


def flat(x: tf.Tensor) -> tf.Tensor:
    """[batch, time, width] -> [batch * time, width]: a product of two matrices, where a batched one is slower."""
    return tf.reshape(x, [-1, x.shape[-1]])


def unflat(rows: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """rows as [batch, time, their width], batch and time being x's."""
    batch, time = tf.unstack(tf.shape(x)[:2]) if None in x.shape[:2] else x.shape[:2]
    made = tf.reshape(rows, [batch, time, rows.shape[-1]])  # no -1: of no positions, that could be any batch
    made.set_shape([x.shape[0], x.shape[1], rows.shape[-1]])
    return made


def gelu(x: tf.Tensor) -> tf.Tensor:
    """f(x) = x sigmoid(1.702 x) (section 5.2)."""
    return x * tf.sigmoid(1.702 * x)


def slope(x: tf.Tensor) -> tf.Tensor:
    """f'(x) = s + 1.702 x s (1 - s), s = sigmoid(1.702 x)."""
    s = tf.sigmoid(1.702 * x)
    return s * (1 + 1.702 * x * (1 - s))


def stored(x: tf.Tensor) -> tf.Tensor:
    """x, which XLA writes to memory as it is, rounded."""
    return xla.optimization_barrier(x)[0] if in_xla() else x


def apart(x: tf.Tensor, count: int) -> list[tf.Tensor]:
    """x so many times, each of which XLA takes for another tensor.

    Of products that share an operand, where they are small, XLA makes one, whose other operand is theirs put together.
    Compiled by Triton, some tiles of it gave NaN on an H200 (TensorFlow 2.21; benchmarks/LOG.md, section 30).
    """
    return list(xla.optimization_barrier(*[x] * count)) if in_xla() else [x] * count


def in_turn(x: tf.Tensor, use: Callable) -> tuple[tf.Tensor, tf.Tensor]:
    """x and use(x), which XLA computes before anything else of the x returned: what use reads may be free by then."""
    found = use(x)
    return tuple(xla.optimization_barrier(x, found)) if in_xla() else (x, found)


def normal(rows: tf.Tensor, epsilon: float) -> tf.Tensor:
    """(x - mean) / sqrt(variance + epsilon) along the width, of the rows' dtype."""
    return tf.cast(normal_and_scale(rows, epsilon)[0], rows.dtype)


def normal_and_scale(rows: tf.Tensor, epsilon: float) -> tuple[tf.Tensor, tf.Tensor]:
    """The same in float32, and 1 / sqrt(variance + epsilon)."""
    x = wide(rows)
    centred = x - tf.reduce_mean(x, axis=-1, keepdims=True)
    scale = tf.math.rsqrt(tf.reduce_mean(centred * centred, axis=-1, keepdims=True) + epsilon)
    return centred * scale, scale


def scale_of(rows: tf.Tensor, epsilon: float) -> tf.Tensor:
    """1 / sqrt(variance + epsilon), in a pass of its own: XLA has a kernel of one pass for `normal`, if that alone is
    asked of the rows, and takes three where the scale is a result as well."""
    return normal_and_scale(stored(rows), epsilon)[1]


def normal_gradient(d: tf.Tensor, normed: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    """The rows' gradient, float32, given `normal`'s and both of `normal_and_scale`."""
    mean = tf.reduce_mean(d, axis=-1, keepdims=True)
    along = tf.reduce_mean(d * normed, axis=-1, keepdims=True)
    return scale * (d - mean - normed * along)
