"""Dropout that a second pass repeats: which numbers are dropped is a function of keys and places."""

from __future__ import annotations

import tensorflow as tf

from .rows import stored

_PHILOX = 1


def dropout_keys(seed, step, branch, batch, first_row=0) -> tf.Tensor:
    """uint32 [batch, 2]: what decides the dropout of a branch's batch rows; all arguments integers or scalar tensors.

    Philox is a counter: row r of the global batch takes draw r, so the keys do not depend on how many replicas share
    the batch.
    """
    key = tf.cast(step, tf.uint64) * 2**16 + tf.cast(branch, tf.uint64)
    drawn = tf.raw_ops.StatelessRandomUniformFullIntV2(
        shape=tf.stack([batch, 4]),  # a count gives four numbers
        key=key[None],
        counter=tf.stack([tf.cast(first_row, tf.uint64), tf.cast(seed, tf.uint64)]),
        alg=_PHILOX,
        dtype=tf.uint32,
    )
    return drawn[:, :2]


def dropout(rows: tf.Tensor, rate: float, keys: tf.Tensor) -> tf.Tensor:
    """x / (1 - rate) with probability 1 - rate, else 0, for rows [batch * time, width] or [batch, time, width].

    Decided by keys [batch, 2] (uint32) and the place in the batch row alone: a second pass drops the same. The bits
    are a hash of the place, two multiplications and a few shifts, which XLA computes where it needs them; bits of a
    random operation would be written to memory and read back. Constants: Wellons' lowbias32.
    """
    batch, width = tf.shape(keys)[0], rows.shape[-1]
    time = tf.size(rows) // tf.maximum(batch * width, 1)  # a replica may get no rows of a last batch
    # A number that TensorFlow does not know: it would make the places of a short context a constant in memory, which
    # each pass reads, of twice the rows' bytes.
    first = stored(tf.zeros([], tf.int32))
    place = (tf.range(time) + first)[:, None] * width + tf.range(width)
    bits = tf.bitwise.bitwise_xor(tf.cast(place, tf.uint32), keys[:, 0, None, None])
    bits = _shifted(bits, 16) * tf.constant(0x7FEB352D, tf.uint32) + keys[:, 1, None, None]
    bits = _shifted(_shifted(bits, 15) * tf.constant(0x846CA68B, tf.uint32), 16)
    kept = tf.reshape(bits >= tf.constant(round(rate * 2**32), tf.uint32), tf.shape(rows))
    scale = tf.constant(1 / (1 - rate), rows.dtype)
    return tf.where(kept, rows * scale, tf.zeros([], rows.dtype))


def _shifted(bits: tf.Tensor, by: int) -> tf.Tensor:
    return tf.bitwise.bitwise_xor(bits, tf.bitwise.right_shift(bits, tf.constant(by, tf.uint32)))
