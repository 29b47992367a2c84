"""Layer normalisation."""

from __future__ import annotations

import tensorflow as tf

from .plan.checks import check_positive
from .tensors import TensorLike, as_float, as_float32, check_axis


def layer_norm(
    x: TensorLike,
    g: TensorLike,
    b: TensorLike,
    axis: int = 1,
    segments: int = 1,
    epsilon: float = 1e-6,
    relu: bool = False,
    atomics: bool = True,
    bench: int = 0,
    use_tf: bool = False,
) -> tf.Tensor:
    """g * (x - mean) / sqrt(variance + epsilon) + b, over axis, in float32; x's shape and dtype.

    g, b: x.shape[axis] numbers each. segments: the axis is cut in so many equal parts, each normalised by
    itself. relu: negative results become 0. A constant row gives b.
    """
    x, g, b = (as_float(name, t) for name, t in (("x", x), ("g", g), ("b", b)))
    rank, axis = x.shape.rank, check_axis(axis, x)
    size = x.shape[axis : axis + 1].num_elements()
    for argument, value in (("g", g), ("b", b)):
        if value.shape.num_elements() != size:
            raise ValueError(f"{argument} is {value.shape}, but x is {x.shape}: it must have {size} numbers")
    check_positive("segments", segments)
    if size is None or size % segments:
        raise ValueError(
            f"segments is {segments}, but axis {axis} of x ({x.shape}) does not divide into so many"
        )
    parts = [segments, size // segments]
    with tf.name_scope("LayerNorm"):
        shape = tf.shape(x)
        wide = tf.concat([shape[:axis], parts, shape[axis + 1 :]], axis=0)
        column = parts + [1] * (rank - 1 - axis)
        y = tf.reshape(as_float32(x), wide)
        mean, variance = tf.nn.moments(y, [axis + 1], keepdims=True)
        y = (y - mean) * tf.math.rsqrt(variance + epsilon)
        y = y * tf.reshape(as_float32(g), column) + tf.reshape(as_float32(b), column)
        y = tf.cast(tf.reshape(tf.nn.relu(y) if relu else y, shape), x.dtype)
        y.set_shape(x.shape)
        return y
