"""Block-sparse attention in plain TensorFlow: what the op means, and the path where no kernel runs.

For a query i that sees the keys j in S(i), with s_ij = scale * q_i . k_j (Sparse Transformers, section 4.2):

    lse_i = log sum_{j in S(i)} exp(s_ij)        out_i = sum_{j in S(i)} exp(s_ij - lse_i) v_j

Only active blocks are computed. Rows of blocks are gathered into rectangles of batched matrix products
(plan/rectangles.py), so the sums have a fixed order and nothing is scattered. Sums and softmax run in float32 whatever
the dtype. Every number is finite while the inputs are, so that a hunt for NaN stops at no healthy one: where nothing is
seen stands EMPTY in the place of -inf.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import tensorflow as tf

from ..plan import Blocks
from ..plan.rectangles import gather_rows
from ..tensors import as_bool
from .meeting import Meeting, per_head
from .there import There

_CHUNK = 1 << 20  # float32 elements gathered and scored at once for each batch row: 4 MB
_WIDTH = 256  # columns of q, k, v and the scores that a block costs, roughly
EMPTY = np.float32(np.finfo(np.float32).min)


def attention(q, k, v, passes: Sequence[Tables], scale: float, segments: Sequence[tf.Tensor] = ()):
    """(out, lse) over the keys of all passes, with the gradient written out in `backward`.

    q: [batch, query_time, heads * head_dim]; k: [batch, key_time, kv_heads * head_dim];
    v: [batch, key_time, kv_heads * value_dim], all of one dtype; query head h reads key head h // (heads / kv_heads).
    passes: no two of them show a query the same key. q, k and v may have fewer rows than they; those past the end
        do not exist.
    segments: int32 [batch, query_time] and [batch, key_time], or nothing: a query sees only keys of its own number.
    out: [batch, query_time, heads * value_dim] in that dtype; lse: float32 [batch, heads, query_time].
    A query that sees no key has out 0, lse EMPTY and zero gradients.
    """

    @tf.custom_gradient
    def run(q, k, v):
        out, lse = join([forward(q, k, v, tables, scale, segments) for tables in passes])
        out = tf.cast(merge_heads(out), q.dtype)
        given = q, k, v, out, lse
        return (out, lse), lambda dout, dlse: _gradient(*given, dout, dlse, passes, scale, segments)

    there = There.of(q, k, passes[0])
    if there is None:
        return run(q, k, v)
    segments = there.segments(q, segments)
    out, lse = run(there.filled(q, 0), there.filled(k, 1), there.filled(v, 1))
    return there.cut(out, q), there.cut(lse, q, axis=2)


def with_infinity(lse):
    """-inf in the place of EMPTY, as the kernels have it."""
    return tf.where(tf.equal(lse, EMPTY), -np.inf, lse)


def gradient(
    q, k, v, out, lse, dout, dlse, passes: Sequence[Tables], scale: float, segments: Sequence[tf.Tensor] = ()
):
    """(dq, dk, dv) of `attention`, given its results; lse may be as with_infinity leaves it."""
    lse = tf.where(tf.math.is_inf(lse), EMPTY, lse)
    there = There.of(q, k, passes[0])
    if there is None:
        return _gradient(q, k, v, out, lse, dout, dlse, passes, scale, segments)
    long_q, long_out, long_dout = (there.filled(x, 0) for x in (q, out, dout))
    long_k, long_v = (there.filled(x, 1) for x in (k, v))
    lse, dlse = (there.filled(x, 0, axis=2) for x in (lse, dlse))
    segments = there.segments(q, segments)
    found = _gradient(long_q, long_k, long_v, long_out, lse, long_dout, dlse, passes, scale, segments)
    return [there.cut(d, x) for d, x in zip(found, (q, k, v), strict=True)]


def _gradient(q, k, v, out, lse, dout, dlse, passes: Sequence[Tables], scale: float, segments):
    # A gradient comes without a static shape from tf.gradients inside a TensorFlow 1 function.
    dout, dlse = tf.ensure_shape(dout, out.shape), tf.ensure_shape(dlse, lse.shape)

    @tf.custom_gradient
    def run(q, k, v, out, lse, dout, dlse):
        # The joint out and lse make each pass's share the ordinary gradient.
        shares = [backward(q, k, v, out, lse, dout, dlse, tables, scale, segments) for tables in passes]
        return tuple(tf.cast(_sum(x), q.dtype) for x in zip(*shares, strict=True)), refuse_second_gradient

    return run(q, k, v, out, lse, dout, dlse)


class NoSecondDerivative(LookupError):
    """Raised where the gradient is differentiated."""

    # AutoGraph re-raises an error with its own notes only if its class has Exception's constructor; else it raises a
    # StagingError in place of this one.
    __init__ = Exception.__init__


def refuse_second_gradient(*_):
    """The gradient of a gradient."""
    raise NoSecondDerivative(
        "block-sparse attention has no second derivative and no forward-mode one; stop its gradient with "
        "tf.stop_gradient, or use attention_impl, which is made of TensorFlow's own operations"
    )


class Tables:
    """The gather tables of a layout, for any number of calls. order, head_index: int [heads], as in Plan."""

    def __init__(self, blocks: Blocks, order: np.ndarray, head_index: np.ndarray, kv_heads: int):
        self.block_size, group = blocks.block_size, len(head_index) // kv_heads
        # Key heads whose readers share one layout become further rows of the batch. Heads with layouts of their own
        # become one block matrix, a head below the other, so that one set of rectangles serves all; so do the heads
        # that read one key head, whose gradient the products then sum.
        self.fold = kv_heads if len(blocks.heads) == 1 else 1
        heads = [blocks.heads[number] for number in (head_index if self.fold == 1 else [0] * group)]
        below = [
            np.array([[h * blocks.query_blocks], [h // group * blocks.key_blocks], [0]])
            for h in range(len(heads))
        ]
        entries = [
            np.stack([head.query, head.key, head.mask]) + down
            for head, down in zip(heads, below, strict=True)
        ]
        query, key, mask = np.concatenate(entries, axis=1)
        seen: np.ndarray = np.any(blocks.masks, axis=(1, 2))[mask]
        query, key, mask = query[seen], key[seen], mask[seen]
        limit = _CHUNK // (self.fold * self.block_size * _WIDTH)
        masks = np.concatenate(
            [blocks.masks, np.zeros_like(blocks.masks[:1])]
        )  # the last: all False, for padding
        self.by_query = _Side(query, key, mask, blocks.query_blocks * len(heads), masks, limit)
        turn = np.lexsort((query, key))
        transposed = masks.transpose(0, 2, 1)
        self.by_key = _Side(
            key[turn], query[turn], mask[turn], blocks.key_blocks * len(heads) // group, transposed, limit
        )
        self.times = blocks.query_time, blocks.key_time
        self.query_order = _Order(order, blocks.query_time)
        self.key_order = _Order(order[::group], blocks.key_time)

    def split(self, x, order: _Order):
        """[batch, time, heads * d] -> [batch * fold, heads / fold * blocks, block_size, d]"""
        _, time, width = x.shape.as_list()
        x = tf.reshape(x, [-1, time, order.heads, width // order.heads])
        return self._blocks(tf.transpose(x, [0, 2, 1, 3]), order)

    def split_rows(self, x, order: _Order):
        """[batch, heads, time] -> [batch * fold, heads / fold * blocks, block_size, 1]"""
        return self._blocks(x[..., None], order)

    def meeting(self, q, segments) -> Meeting:
        """Which of q's queries and of the keys have one segment number."""
        if not segments:
            return Meeting()
        orders = self.query_order, self.key_order
        sides = zip(segments, orders, strict=True)
        return Meeting(*(self.split_rows(per_head(each, q, order.heads), order) for each, order in sides))

    def _blocks(self, x, order: _Order):
        _, heads, time, d = x.shape.as_list()
        x = order.gather(tf.reshape(x, [-1, heads * time, d]), order.rows)
        return tf.reshape(x, [-1, heads // self.fold * time // self.block_size, self.block_size, d])

    def unsplit(self, x, order: _Order):
        """What split has made of blocks, as [batch, heads, time, d]."""
        _, blocks, size, d = x.shape.as_list()
        rows = self.fold * blocks * size
        x = order.gather(tf.reshape(x, [-1, rows, d]), order.inverse)
        return tf.reshape(x, [-1, order.heads, rows // order.heads, d])


def merge_heads(x):
    """[batch, heads, time, d] -> [batch, time, heads * d]"""
    _, heads, time, d = x.shape.as_list()
    return tf.reshape(tf.transpose(x, [0, 2, 1, 3]), [-1, time, heads * d])


class _Order:
    """Plan row r of head h is tensor row (r % (n / s)) * s + r // (n / s), s = order[h]."""

    def __init__(self, order: np.ndarray, time: int):
        self.heads = len(order)
        self.rows = self.inverse = None  # as they come
        if np.any(np.asarray(order) != 1):
            r, s = np.arange(time), np.asarray(order)[:, None]
            rows = (r % (time // s)) * s + r // (time // s) + np.arange(len(s))[:, None] * time
            self.rows = rows.reshape(-1).astype(np.int32)
            self.inverse = np.argsort(self.rows).astype(np.int32)

    @staticmethod
    def gather(x, rows: np.ndarray | None):
        return x if rows is None else tf.gather(x, rows, axis=1)


@dataclass(frozen=True, eq=False)
class _Chunks:
    """Rows with about the same number of columns: what one step works on, for each chunk."""

    rows: np.ndarray  # int32 [chunks, R] block rows
    columns: np.ndarray  # int32 [chunks, R, C] their block columns
    masks: np.ndarray  # int32 [chunks, R, C] rows of the mask table


class _Side:
    """One side's rows of blocks, sorted by row, as rectangles."""

    def __init__(self, row, column, mask, rows: int, masks: np.ndarray, limit: int):
        laid = gather_rows(row, rows, limit)
        self.masks, self.place, self.chunks = masks, laid.place, []
        for rectangle in laid.rectangles:
            missing = rectangle.entries < 0
            entries = np.where(missing, rectangle.entries[..., :1], rectangle.entries)
            shown = np.where(missing, len(masks) - 1, mask[entries]).astype(np.int32)
            columns = column[entries].astype(np.int32)
            self.chunks.append(_Chunks(rectangle.rows, columns, shown))

    def visible(self, masks):
        """Who sees whom, bool [R, block_size, C * block_size]."""
        size = self.masks.shape[1]
        grid = tf.transpose(tf.gather(as_bool(self.masks), masks), [0, 2, 1, 3])
        return tf.reshape(grid, [-1, size, masks.shape.as_list()[1] * size])

    def sweep(self, step: Callable, *outputs: tuple[int, float], batch):
        """Run step(rows, columns, visible) over all chunks. outputs: width of each result and its value in a
        row that has no column. Returns them as [batch, rows, block_size, width]."""

        def part(tables):
            rows, columns, masks = tables
            return step(rows, columns, self.visible(masks))

        size = self.masks.shape[1]
        results = [[tf.fill([batch, 1, size, width], empty)] for width, empty in outputs]
        for chunk in self.chunks:
            tables = chunk.rows, chunk.columns, chunk.masks
            if len(chunk.rows) == 1:
                done = part([tf.constant(table[0]) for table in tables])
            else:
                kinds = tuple(tf.float32 for _ in outputs)
                done = tf.map_fn(part, tables, parallel_iterations=1, fn_output_signature=kinds)
                done = [tf.transpose(x, [1, 0, 2, 3, 4]) for x in done]
            for result, x, (width, _) in zip(results, done, outputs, strict=True):
                result.append(tf.reshape(x, [-1, chunk.rows.size, size, width]))
        return [tf.gather(tf.concat(result, axis=1), self.place, axis=1) for result in results]


def _rows(x, rows):
    """[batch, blocks, block_size, d] -> float32 [batch, R, block_size, d]"""
    return tf.cast(tf.gather(x, rows, axis=1), tf.float32)


def _columns(x, columns):
    """[batch, blocks, block_size, d] -> float32 [batch, R, C * block_size, d]"""
    _, _, size, d = x.shape.as_list()
    rows, width = columns.shape.as_list()
    return tf.cast(tf.reshape(tf.gather(x, columns, axis=1), [-1, rows, width * size, d]), tf.float32)


def join(parts: list[tuple[tf.Tensor, tf.Tensor]]):
    """(out, lse) over disjoint sets of keys out of those over each: sum_p exp(lse_p - lse) out_p."""
    if len(parts) == 1:
        return parts[0]
    outs, sums = zip(*parts, strict=True)
    top = tf.reduce_max(tf.stack(sums), axis=0)
    weights = [tf.exp(lse - top) for lse in sums]  # 0 for a part without keys beside one with some
    total = _sum(weights)
    out = _sum([(weight / total)[..., None] * part for weight, part in zip(weights, outs, strict=True)])
    return out, top + tf.math.log(total)


def _sum(terms):
    """In order: tf.add_n promises none."""
    return reduce(tf.add, terms)


def forward(q, k, v, tables: Tables, scale: float, segments: Sequence[tf.Tensor] = ()):
    """(out, lse) of one pass: float32 [batch, heads, query_time, value_dim] and [batch, heads, query_time]."""
    queries, keys = tables.split(q, tables.query_order), tables.split(k, tables.key_order)
    values, meeting = tables.split(v, tables.key_order), tables.meeting(q, segments)

    def step(rows, columns, visible):
        visible = meeting.by_query(rows, columns, visible)
        s = scale * tf.matmul(_rows(queries, rows), _columns(keys, columns), transpose_b=True)
        s = tf.where(visible, s, EMPTY)
        top = tf.reduce_max(s, axis=-1, keepdims=True)
        top = tf.where(tf.equal(top, EMPTY), 0.0, top)
        p = tf.exp(s - top)
        total = tf.reduce_sum(p, axis=-1, keepdims=True)
        empty = tf.equal(total, 0.0)
        total = tf.where(empty, 1.0, total)
        return tf.matmul(p, _columns(values, columns)) / total, tf.where(
            empty, EMPTY, top + tf.math.log(total)
        )

    shapes = (values.shape.as_list()[3], 0.0), (1, float(EMPTY))
    out, lse = tables.by_query.sweep(step, *shapes, batch=tf.shape(queries)[0])
    return tables.unsplit(out, tables.query_order), tables.unsplit(lse, tables.query_order)[..., 0]


def backward(q, k, v, out, lse, dout, dlse, tables: Tables, scale: float, segments: Sequence[tf.Tensor] = ()):
    """(dq, dk, dv) of one pass in float32, written out. With p_ij = exp(s_ij - lse_i), delta_i = dout_i . out_i -
    dlse_i and ds_ij = p_ij (dout_i . v_j - delta_i):

    dq_i = scale sum_j ds_ij k_j        dk_j = scale sum_i ds_ij q_i        dv_j = sum_i p_ij dout_i
    """
    q, k = _distinguish(q, lse, dout), _distinguish(k, lse, dout)
    queries, keys = tables.split(q, tables.query_order), tables.split(k, tables.key_order)
    values, gradients = tables.split(v, tables.key_order), tables.split(dout, tables.query_order)
    outs, meeting = tables.split(out, tables.query_order), tables.meeting(q, segments)
    delta = tf.reduce_sum(tf.cast(gradients, tf.float32) * tf.cast(outs, tf.float32), axis=-1, keepdims=True)
    delta -= tables.split_rows(dlse, tables.query_order)
    lse = tables.split_rows(tf.where(tf.equal(lse, EMPTY), 0.0, lse), tables.query_order)
    # A query that sees a NaN or infinite key has NaN in ds already. Those that do not see it have ds = 0 there, and
    # 0 * NaN in the product with the keys would make their dq NaN too.
    finite_keys = tf.where(tf.math.is_finite(keys), keys, tf.zeros_like(keys))

    def by_query(rows, columns, visible):
        visible = meeting.by_query(rows, columns, visible)
        s = scale * tf.matmul(_rows(queries, rows), _columns(keys, columns), transpose_b=True)
        p = tf.exp(s - _rows(lse, rows))
        dp = tf.matmul(_rows(gradients, rows), _columns(values, columns), transpose_b=True)
        ds = tf.where(visible, p * (dp - _rows(delta, rows)), 0.0)
        return (scale * tf.matmul(ds, _columns(finite_keys, columns)),)

    def by_key(rows, columns, visible):
        visible = meeting.by_key(rows, columns, visible)
        queries_seen, gradients_seen = _columns(queries, columns), _columns(gradients, columns)
        s = scale * tf.matmul(_rows(keys, rows), queries_seen, transpose_b=True)
        p = tf.where(visible, tf.exp(s - tf.linalg.matrix_transpose(_columns(lse, columns))), 0.0)
        dp = tf.matmul(_rows(values, rows), gradients_seen, transpose_b=True)
        ds = tf.where(visible, p * (dp - tf.linalg.matrix_transpose(_columns(delta, columns))), 0.0)
        return scale * tf.matmul(ds, queries_seen), tf.matmul(p, gradients_seen)

    width, batch = (keys.shape.as_list()[3], 0.0), tf.shape(queries)[0]
    (dq,) = tables.by_query.sweep(by_query, width, batch=batch)
    dk, dv = tables.by_key.sweep(by_key, width, (values.shape.as_list()[3], 0.0), batch=batch)
    results = (dq, tables.query_order), (dk, tables.key_order), (dv, tables.key_order)
    return [merge_heads(tables.unsplit(x, order)) for x, order in results]


def _distinguish(x, lse, dout):
    """x, in a way that no optimiser can prove: else it merges the backward pass's products with the forward
    pass's and keeps them in memory between the two (control dependencies alone are lost under XLA). No constant is
    infinite or NaN: a hunt for NaN would stop at it."""
    with tf.control_dependencies(None if tf.executing_eagerly() else [dout]):
        never = tf.reduce_max(lse[:1, :1, :1]) > tf.float32.max  # infinite scores make lse NaN
        return tf.where(never, tf.constant(x.dtype.max, x.dtype), x)
