"""Segment numbers in the reference: which of the rows and columns that it computes together may meet."""

from __future__ import annotations

from dataclasses import dataclass

import tensorflow as tf


@dataclass(frozen=True)
class Meeting:
    """Segment numbers in blocks, [batch, blocks, block_size, 1], of queries and of keys; None twice: all may meet."""

    query: tf.Tensor | None = None
    key: tf.Tensor | None = None

    def by_query(self, rows, columns, visible):
        """`visible` where the block row's query and the column's key have one number, which is not negative.

        rows [R], columns [R, C]: numbers of blocks. visible: bool [R, block_size, C * block_size].
        """
        return visible if self.query is None else visible & _equal(self.query, self.key, rows, columns)

    def by_key(self, rows, columns, visible):
        """by_query of rows of keys and columns of queries."""
        return visible if self.key is None else visible & _equal(self.key, self.query, rows, columns)


def per_head(numbers: tf.Tensor, like: tf.Tensor, heads: int) -> tf.Tensor:
    """[batch, time] -> [batch, heads, time]; `like` has the batch, which numbers of another one do not fit."""
    rows = tf.reshape(numbers, [tf.shape(like)[0], 1, numbers.shape.as_list()[1]])
    return tf.repeat(rows, heads, axis=1)


def _equal(own, other, rows, columns):
    own, beside = tf.gather(own, rows, axis=1), tf.gather(other, columns, axis=1)
    _, count, width, size, _ = beside.shape.as_list()
    return tf.equal(own, tf.reshape(beside, [-1, count, 1, width * size])) & (own >= 0)
