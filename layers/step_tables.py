"""Which slots of a cache the next queries see and where the new keys go, as the GPU's decoding kernels read it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from sparse_attention.decode_groups import Group

WORD = 32  # slots whose bits share an int32


class Tables(NamedTuple):
    """For [steps, rows] positions; blocksparse/gpu/kernels/steps describes each.

    They are int32 in bits of uint32: what is int32 a graph keeps in the host's memory.
    """

    words: tf.Tensor
    begins: tf.Tensor
    places: tf.Tensor
    ends: tf.Tensor


def word_count(group: Group) -> int:
    """Words of a query: the slots of each run fill whole ones."""
    return sum(-(-_length(run) // WORD) for run in group.runs)


def tables(group: Group, positions: tf.Tensor, n_ctx: int) -> Tables:
    """Those of heads that share a cache, at positions [steps, rows]; from n_ctx on, nothing is seen or written."""
    shape, members = positions.shape.as_list(), len(group.heads)
    i = tf.reshape(positions, [-1, 1, 1])
    valid = i < n_ctx
    places = [
        tf.broadcast_to(
            tf.where(factor.keeps(i) & valid, factor.offset + factor.cache.slot(i), -1),
            [i.shape[0], 1, members],
        )
        for factor in group.factors
    ]
    words, begins, own = [], [], tf.zeros([i.shape[0], members], tf.bool)
    for run in group.runs:
        first, length = run[0], _length(run)
        begin = first.offset + first.cache.run(i) * first.cache.length
        slots = begin + np.arange(length, dtype=np.int32)[:, None]
        new = tf.reduce_any(tf.stack([tf.equal(slots, place) for place in places]), axis=0)
        seen = tf.broadcast_to(group.seen(run, i, valid), new.shape)
        own |= tf.reduce_any(seen & new, axis=1)
        words.append(_packed(seen & ~new))
        begins.append(begin[:, 0] + np.arange(0, length, WORD, dtype=np.int32))
    words = tf.concat(words, -1)
    last = tf.reduce_max(
        tf.where(tf.equal(words, 0), 0, np.arange(1, words.shape[-1] + 1, dtype=np.int32)), axis=-1
    )
    found = (
        tf.reshape(words, [*shape, members, -1]),
        tf.reshape(tf.concat(begins, -1), [*shape, -1]),
        tf.reshape(tf.stack([place[:, 0] for place in places], -1), [*shape, members, -1]),
        tf.reshape(tf.stack([tf.cast(own, tf.int32), last], -1), [*shape, members, 2]),
    )
    return Tables(*(tf.bitcast(each, tf.uint32) for each in found))


def _length(run) -> int:
    return sum(factor.cache.length for factor in run)


def _packed(seen: tf.Tensor) -> tf.Tensor:
    """[n, length, members] -> bits [n, members, words]."""
    seen = tf.pad(seen, [[0, 0], [0, -seen.shape[1] % WORD], [0, 0]])
    seen = tf.reshape(tf.transpose(seen, [0, 2, 1]), [seen.shape[0], seen.shape[2], -1, WORD])
    bits = np.left_shift(np.uint32(1), np.arange(WORD, dtype=np.uint32)).view(np.int32)
    return tf.reduce_sum(tf.where(seen, bits, 0), axis=-1)
