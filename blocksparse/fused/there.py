"""Tensors with fewer rows than the tables of the reference have: filled up with zeros that nobody sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tensorflow as tf


@dataclass(frozen=True, eq=False)
class There:
    """Tensors with fewer rows than the tables, whose number may be known only when a graph runs."""

    times: tuple  # rows of q, and of k and v: numbers or scalar tensors
    whole: tuple[int, int]  # of the tables
    batch: Any
    heads: int

    @classmethod
    def of(cls, q, k, tables: Any) -> There | None:
        """None where every row of the tables is there."""
        static = q.shape[1], k.shape[1]
        if static == tables.times:
            return None
        times = [tf.shape(x)[1] if time is None else time for x, time in zip((q, k), static, strict=True)]
        return cls(tuple(times), tables.times, tf.shape(q)[0], tables.heads)

    def filled(self, x, side: int, axis: int = 1):
        """x with zeros along `axis`, up to the tables' number of queries (side 0) or keys (side 1)."""
        missing = self.whole[side] - self.times[side]
        x = tf.pad(x, [[0, missing if at == axis else 0] for at in range(3)])
        shape = x.shape.as_list()
        shape[axis] = self.whole[side]
        return tf.ensure_shape(x, shape)

    def cut(self, x, like, axis: int = 1):
        """The rows of x that `like` has."""
        begin, size = [0, 0, 0], [-1, -1, -1]
        size[axis] = tf.shape(like)[1]
        shape = x.shape.as_list()
        shape[axis] = like.shape[1]
        return tf.ensure_shape(tf.slice(x, begin, tf.stack(size)), shape)

    def rows(self, side: int, tables: Any):
        """Which rows exist, as tables.split has them: 1 or 0, [batch * fold, blocks, block_size, 1]."""
        rows = tf.cast(tf.range(self.whole[side]) < self.times[side], tf.float32)
        rows = tf.broadcast_to(rows[:, None], [self.batch, self.whole[side], self.heads])
        rows = tf.ensure_shape(rows, [None, self.whole[side], self.heads])
        return tables.split(rows, (tables.query_order, tables.key_order)[side])


def seen_columns(there: There | None, side: int, tables: Any) -> Callable:
    """columns [R, C] -> bool, broadcast with [batch * fold, R, block_size, C * block_size]: which of them exist."""
    if there is None:
        return lambda columns: True
    rows = there.rows(side, tables)[..., 0] > 0

    def seen(columns):
        count, width = columns.shape.as_list()
        return tf.reshape(tf.gather(rows, columns, axis=1), [-1, count, 1, width * rows.shape[2]])

    return seen
