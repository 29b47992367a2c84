"""The three separate steps of attention in plain TensorFlow: block-sparse matrices as tensors.

A block-sparse matrix is [batch, heads, blocks, block_size, block_size], blocks sorted by (query, key):

    nt: w_b = a_q b_k^T for each block b = (q, k)      nn: c_q = sum_k w_b b_k      tn: c_k = sum_q w_b^T b_q

and softmax over all keys of a query. Sums run in float32; each gradient is made of the same operations (a graph
that was saved and imported takes TensorFlow's own gradients instead, to the same numbers).
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from ..plan.rectangles import gather_rows
from ..recomputation.attach import with_gradient
from ..tensors import as_bool

_NO_LIMIT = 1 << 62  # entries a chunk: all in one, since these operations hold all scores at once anyway


class BlockProducts:
    """The products of one layout. query, key: int [lut_heads, blocks], sorted; lut_heads is 1 or heads."""

    def __init__(
        self,
        query: np.ndarray,
        key: np.ndarray,
        query_blocks: int,
        key_blocks: int,
        block_size: int,
        heads: int,
    ):
        self.heads, self.block_size = heads, block_size
        self.layouts, self.blocks = query.shape
        self.query, self.key = query, key
        below = np.arange(self.layouts)[:, None]  # heads' layouts, one below the other, as one matrix
        self._row = (query + below * query_blocks).reshape(-1)
        self._column = (key + below * key_blocks).reshape(-1)
        self._query_blocks, self._key_blocks = query_blocks, key_blocks
        self._by_row = gather_rows(self._row, self.layouts * query_blocks, _NO_LIMIT)
        self._sorted = np.argsort(self._column, kind="stable")
        self._by_column = gather_rows(self._column[self._sorted], self.layouts * key_blocks, _NO_LIMIT)

    def nt(self, a, b):
        """float32 w from a [batch, query_time, heads * d] and b [batch, key_time, heads * d]."""

        def run(a, b):
            rows, columns = (
                tf.gather(self._split(x), i, axis=1) for x, i in ((a, self._row), (b, self._column))
            )
            w = tf.matmul(tf.cast(rows, tf.float32), tf.cast(columns, tf.float32), transpose_b=True)
            size = self.block_size
            w = tf.reshape(w, [-1, self.heads, self.blocks, size, size])
            return w, lambda dw: (tf.cast(self.nn(dw, b), a.dtype), tf.cast(self.tn(dw, a), b.dtype))

        return with_gradient(run, a, b)

    def nn(self, w, b):
        """[batch, query_time, heads * d] in b's dtype, from w and [batch, key_time, heads * d]."""

        def run(w, b):
            def gradient(dc):
                dc = self._shaped(dc, self._query_blocks, b)
                return tf.cast(self.nt(dc, b), w.dtype), tf.cast(self.tn(w, dc), b.dtype)

            entries = np.arange(len(self._column))
            return self._sum(self._by_row, entries, self._column, w, b, transpose=False), gradient

        return with_gradient(run, w, b)

    def tn(self, w, b):
        """[batch, key_time, heads * d] in b's dtype, from w and [batch, query_time, heads * d]."""

        def run(w, b):
            def gradient(dc):
                dc = self._shaped(dc, self._key_blocks, b)
                return tf.cast(self.nt(b, dc), w.dtype), tf.cast(self.nn(w, dc), b.dtype)

            return self._sum(self._by_column, self._sorted, self._row, w, b, transpose=True), gradient

        return with_gradient(run, w, b)

    def softmax(self, x, scale, visible, dtype):
        """exp(scale * x) over its sum along each query's visible keys; 0 where invisible, and in rows that
        see nothing.

        visible: None, or a bool tensor [lut_heads, blocks, bs, bs].
        """

        def run(x):
            y = self._along_rows(lambda s, seen: _softmax(scale * s, seen), x, visible=visible)

            def gradient(dy):
                dx = self._along_rows(
                    lambda d, p, seen: scale * p * (d - _total(tf.where(seen, d * p, 0.0))), dy, y
                )
                return (tf.cast(dx, x.dtype),)

            return tf.cast(y, dtype), gradient

        return with_gradient(run, x)

    def _sum(self, table, entries, other, w, b, transpose: bool):
        """Each row's sum of its blocks of w (transposed or not) times the matching rows of b."""
        w = tf.reshape(w, [-1, self.layouts * self.blocks, self.block_size, self.block_size])
        parts, b = [], self._split(b)
        for rectangle in table.rectangles:
            (rows, width), missing = rectangle.entries.shape[1:], rectangle.entries[0] < 0
            number = entries[np.where(missing, rectangle.entries[0][:, :1], rectangle.entries[0])]
            left = tf.cast(tf.gather(w, number, axis=1), tf.float32)  # [batch, R, C, bs, bs]
            left = tf.linalg.matrix_transpose(left) if transpose else left
            left = tf.where(as_bool(missing[..., None, None]), 0.0, left)
            left = tf.transpose(left, [0, 1, 3, 2, 4])
            left = tf.reshape(left, [-1, rows, self.block_size, width * self.block_size])
            right = tf.cast(tf.gather(b, other[number], axis=1), tf.float32)
            right = tf.reshape(right, [-1, rows, width * self.block_size, b.shape.as_list()[3]])
            parts.append(tf.matmul(left, right))
        empty = tf.zeros([tf.shape(b)[0], 1, *b.shape.as_list()[2:]], tf.float32)
        c = tf.gather(tf.concat([empty, *parts], axis=1), table.place, axis=1)
        return tf.cast(self._join(c), b.dtype)

    def _along_rows(self, function, *matrices, visible=None):
        """function(matrices..., visible) over float32 [batch, R, bs, C * bs]: blocks side by side."""
        size = self.block_size
        flat = [tf.reshape(x, [-1, self.layouts * self.blocks, size, size]) for x in matrices]
        if visible is not None:
            visible = tf.reshape(visible, [1, -1, size, size])
        parts, laid = [], []
        for rectangle in self._by_row.rectangles:
            (rows, width), missing = rectangle.entries.shape[1:], rectangle.entries[0] < 0
            number = np.where(missing, 0, rectangle.entries[0])

            def side_by_side(x, number=number, rows=rows, width=width):
                x = tf.transpose(tf.gather(x, number, axis=1), [0, 1, 3, 2, 4])
                return tf.reshape(x, [-1, rows, size, width * size])

            seen = as_bool(np.repeat(~missing, size, axis=1)[:, None, :])
            seen = seen if visible is None else seen & side_by_side(visible)
            y = function(*(tf.cast(side_by_side(x), tf.float32) for x in flat), seen)
            y = tf.transpose(tf.reshape(y, [-1, rows, size, width, size]), [0, 1, 3, 2, 4])
            parts.append(tf.reshape(y, [-1, rows * width, size, size]))
            laid.append(rectangle.entries.reshape(-1))
        entry = np.concatenate(laid)
        place = np.zeros(self.layouts * self.blocks, np.int32)
        place[entry[entry >= 0]] = np.flatnonzero(entry >= 0)
        y = tf.gather(tf.concat(parts, axis=1), place, axis=1)
        return tf.reshape(y, [-1, self.heads, self.blocks, size, size])

    def _shaped(self, dc, blocks, b):
        """dc with the shape that a Defun's gradient does not know."""
        return tf.ensure_shape(dc, [None, blocks * self.block_size, b.shape[-1]])

    def _split(self, x):
        """[batch, time, heads * d] -> [batch * heads / layouts, layouts * time / bs, bs, d]"""
        _, time, width = x.shape.as_list()
        d = width // self.heads
        x = tf.transpose(tf.reshape(x, [-1, time, self.heads, d]), [0, 2, 1, 3])
        return tf.reshape(x, [-1, self.layouts * time // self.block_size, self.block_size, d])

    def _join(self, x):
        """The inverse of _split."""
        _, blocks, size, d = x.shape.as_list()
        time = blocks // self.layouts * size
        x = tf.transpose(tf.reshape(x, [-1, self.heads, time, d]), [0, 2, 1, 3])
        return tf.reshape(x, [-1, time, self.heads * d])


def _softmax(s, seen):
    s = tf.where(seen, s, -np.inf)
    top = tf.reduce_max(s, axis=-1, keepdims=True)
    p = tf.exp(s - tf.where(tf.equal(top, -np.inf), 0.0, top))
    total = _total(p)
    return p / tf.where(tf.equal(total, 0.0), 1.0, total)


def _total(x):
    return tf.reduce_sum(x, axis=-1, keepdims=True)
