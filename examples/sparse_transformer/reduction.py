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
    vectors = [_pieces(members) for members in flat.split(model, gradients)]
    # tf.distribute begins with the last, and a pack of one byte takes one piece. The short vector of all layers' biases
    # is the one that is complete last.
    order = [piece for vector in reversed(vectors) for piece in vector]
    options = tf.distribute.experimental.CommunicationOptions(bytes_per_pack=1)
    done = context.all_reduce(tf.distribute.ReduceOp.SUM, order, options=options)
    first = len(vectors[1])
    return [tf.cast(tf.concat(vector, axis=0), tf.float32) for vector in (done[first:], done[:first])]


def _pieces(tensors) -> list[tf.Tensor]:
    """Each bucket's tensors, one behind the other."""
    rest = iter(tensors)
    pieces = []
    for count in buckets([4 * tensor.shape.num_elements() for tensor in tensors], BUCKET):
        parts = [tf.reshape(next(rest), [-1]) for _ in range(count)]
        pieces.append(tf.cast(tf.concat(parts, axis=0), DTYPE))
    return pieces
