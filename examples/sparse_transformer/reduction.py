"""Sums the gradient over the replicas, in buckets: the last layers' are on their way while the first are computed.

A bucket is some 25 MB of neighbouring matrices, one collective each; NCCL moves smaller ones no faster. They are summed
in float32, where the paper's are in float16 (section 5.6).
"""

from __future__ import annotations

import tensorflow as tf

from . import flat

BUCKET = 25 * 2**20  # bytes
DTYPE = tf.float32


def buckets(sizes: list[int], limit: int) -> list[int]:
    """How many neighbours each bucket takes of tensors of these sizes: as many as first reach `limit` together."""
    counts, filled = [], limit
    for size in sizes:
        if filled >= limit:
            counts.append(0)
            filled = 0
        counts[-1] += 1
        filled += size
    return counts


def summed(context: tf.distribute.ReplicaContext, model, gradients) -> list[tf.Tensor]:
    """The gradient of flat.NAMES, float32 [n] each, summed over all replicas.

    gradients: this replica's, for model.trainable_variables.
    """
    pieces, counts = [], []
    for members in flat.split(model, gradients):
        found = buckets([4 * member.shape.num_elements() for member in members], BUCKET)
        counts.append(len(found))
        rest = iter(members)
        for count in found:
            parts = [tf.reshape(next(rest), [-1]) for _ in range(count)]
            pieces.append(tf.cast(tf.concat(parts, axis=0), DTYPE))
    # A pack of one byte takes one piece. tf.distribute begins with the last.
    options = tf.distribute.experimental.CommunicationOptions(bytes_per_pack=1)
    pieces = context.all_reduce(tf.distribute.ReduceOp.SUM, pieces, options=options)
    vectors = pieces[: counts[0]], pieces[counts[0] :]
    return [tf.cast(tf.concat(vector, axis=0), tf.float32) for vector in vectors]
