"""Tensors with fewer rows than the reference's tables, filled up with zeros of segments that nobody else has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf


@dataclass(frozen=True, eq=False)
class There:
    """Tensors with fewer rows than the tables, whose number may be known only when a graph runs."""

    times: tuple  # rows of q, and of k and v: numbers or scalar tensors
    whole: tuple[int, int]  # of the tables

    @classmethod
    def of(cls, q, k, tables: Any) -> There | None:
        """None where every row of the tables is there."""
        static = q.shape.as_list()[1], k.shape.as_list()[1]
        if static == tables.times:
            return None
        times = [tf.shape(x)[1] if time is None else time for x, time in zip((q, k), static, strict=True)]
        return cls(tuple(times), tables.times)

    def filled(self, x, side: int, axis: int = 1):
        """x with zeros along `axis`, up to the tables' number of queries (side 0) or keys (side 1)."""
        missing = self.whole[side] - self.times[side]
        x = tf.pad(x, [[0, missing if at == axis else 0] for at in range(3)])
        shape = x.shape.as_list()
        shape[axis] = self.whole[side]
        return _stated(x, shape)

    def cut(self, x, like, axis: int = 1):
        """The rows of x that `like` has."""
        begin, size = [0, 0, 0], [-1, -1, -1]
        size[axis] = tf.shape(like)[1]
        shape = x.shape.as_list()
        shape[axis] = like.shape.as_list()[1]
        return _stated(tf.slice(x, begin, tf.stack(size)), shape)

    def segments(self, q, segments: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Segment numbers of all rows of the tables: those that do not exist meet nobody."""
        found = []
        for side in (0, 1):
            rows = tf.zeros([tf.shape(q)[0], self.times[side]], tf.int32) if not segments else segments[side]
            rows = tf.pad(rows, [[0, 0], [0, self.whole[side] - self.times[side]]], constant_values=-1)
            found.append(_stated(rows, [None, self.whole[side]]))
        return found


def _stated(x: tf.Tensor, shape: list) -> tf.Tensor:
    """x, of a shape that it has by its making: tf.ensure_shape would be an operation, of which TFLite has none."""
    x.set_shape(shape)
    return x
