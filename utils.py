"""Small TensorFlow helpers, with the names OpenAI's sparse_attention gives them."""

from __future__ import annotations

import tensorflow as tf

from blocksparse.plan.checks import check_heads, check_positive

# `from utils import recomputable` works as in OpenAI's code.
if __package__:
    from .recompute import recomputable as recomputable
else:
    from recompute import recomputable as recomputable


def shape_list(x: tf.Tensor) -> list:
    """The shape of `x`: an int where it is known, a scalar tensor where it is not."""
    static = tf.TensorShape(x.shape).as_list()  # a NumPy array's shape is a tuple
    if None not in static:
        return static
    dynamic = tf.shape(x)
    return [dynamic[axis] if size is None else size for axis, size in enumerate(static)]


def split_states(x: tf.Tensor, n: int) -> tf.Tensor:
    """[batch, time, heads * head_dim] -> [batch, time, heads, head_dim], n heads."""
    *outer, width = shape_list(x)
    check_positive("n", n)
    if isinstance(width, int):
        check_heads(n, "the width of x", width, "n")
    return tf.reshape(x, [*outer, n, width // n])


def merge_states(x: tf.Tensor) -> tf.Tensor:
    """[batch, time, heads, head_dim] -> [batch, time, heads * head_dim]."""
    *outer, heads, head_dim = shape_list(x)
    return tf.reshape(x, [*outer, heads * head_dim])


def split_heads(x: tf.Tensor, n: int) -> tf.Tensor:
    """[batch, time, heads * head_dim] -> [batch, heads, time, head_dim], n heads."""
    return tf.transpose(split_states(x, n), [0, 2, 1, 3])


def merge_heads(x: tf.Tensor) -> tf.Tensor:
    """[batch, heads, time, head_dim] -> [batch, time, heads * head_dim]."""
    return merge_states(tf.transpose(x, [0, 2, 1, 3]))
