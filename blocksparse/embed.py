"""Embedding look-up."""

from __future__ import annotations

import tensorflow as tf

from .tensors import TensorLike, as_float, as_indices, check_rank


def embedding_lookup(
    emb: TensorLike, idx: TensorLike, sort_grad: bool = True, bench: int = 0, use_tf: bool = False
) -> tf.Tensor:
    """emb[idx]: [..., state], of emb's dtype, for emb [rows, state] and idx [...] of any integer dtype.

    The gradient is dense, [rows, state], summed in float32 and returned in the dtype of the incoming one. An
    index outside 0 .. rows - 1 is an error on the CPU and gives zeros on a GPU, as tf.gather does.
    """

    @tf.custom_gradient
    def lookup(emb, idx):
        def grad(dy):
            width = tf.shape(emb)[1]
            rows = tf.reshape(tf.cast(dy, tf.float32), [-1, width])
            total = tf.math.unsorted_segment_sum(rows, tf.reshape(idx, [-1]), tf.shape(emb)[0])
            return tf.ensure_shape(tf.cast(total, dy.dtype), emb.shape), None

        return tf.gather(emb, idx), grad

    emb = as_float("emb", emb)
    check_rank("emb", emb, "[rows, state]", 2)
    return lookup(emb, as_indices("idx", idx))
