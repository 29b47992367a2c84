"""Attention for one position at a time: sampling that keeps only the keys and values a query can still reach.

The mask comes from the predicates of patterns.py, as that of training does. What is added here is where the keys of
each factor live, so that one step touches O(sqrt n) of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import tensorflow as tf

from blocksparse.plan.checks import check_heads
from blocksparse.plan.modes import TABLE, Cache, Mode, head_modes
from blocksparse.plan.patterns import Pattern


@dataclass(frozen=True)
class Factor:
    """One factor of a pattern, and the cache that holds its keys.

    sees(i, j): whether query i reads key j from this cache; a key that an earlier factor holds is not read again.
    keeps(j): whether the cache takes key j: where j's own query sees it, as nobody sees it otherwise.
    """

    cache: Cache
    sees: Callable
    keeps: Callable


def _factors(modes: list[Mode], n_ctx: int) -> list[Factor]:
    """The factors of heads whose modes have the same names; only their summary columns may differ."""
    first: Any = None  # [heads, 1], as the predicates take arrays in the place of integers
    last: Any = None
    if modes[0].first is not None:
        first, last = (
            np.array([[getattr(mode, end)] for mode in modes], np.int32) for end in ("first", "last")
        )
    factors: list[Factor] = []
    held: list[Pattern] = []
    for name in modes[0].parts:
        mode = Mode((name,), modes[0].local_attn_ctx, first, last)
        pattern = mode.pattern()
        unread = reduce(lambda rest, earlier: rest & ~earlier, held, pattern)
        held.append(pattern)
        factors.append(
            Factor(TABLE[name].cache(mode, n_ctx), unread.sees, lambda j, own=pattern: own.sees(j, j))
        )
    return factors


class DecodeStep:
    """softmax(q k^T / sqrt(head_dim)) v of one query over the keys that its pattern lets it see.

    Fed 0, 1, 2, ..., the outputs equal the rows of `blocksparse_attention_impl` to rounding. A step costs what the
    pattern shows one query: local_attn_ctx for `local` and `chunk`, n_ctx / local_attn_ctx for `strided`, that times
    vertsize * blocksize for `summary`. The caches are variables, which change in place; those of `all` and `strided`
    hold every position, the others what can still be reached.

        step = DecodeStep(batch, n_ctx, key_width, value_width, heads, "fixed", 128, 32, num_verts=4, vertsize=1)
        out = step(q, k, v, position)     # q, k [batch, key_width], v [batch, value_width] -> out as v, float32

    Args: batch; n_ctx, the positions there can be; the widths over all heads; the pattern as in
        `blocksparse_attention_impl`; dtype of the caches.

    Make it outside tf.function and call it inside. A new sequence just starts at position 0 again. Softmax and sums run
    in float32; a query that sees no key gives zeros.
    """

    def __init__(
        self,
        batch: int,
        n_ctx: int,
        key_width: int,
        value_width: int,
        heads: int,
        attn_mode: str | Sequence[str] = "all",
        local_attn_ctx: int | None = None,
        blocksize: int = 32,
        num_verts: int | None = None,
        vertsize: int | None = None,
        dtype: tf.DType = tf.float32,
    ):
        modes = head_modes(attn_mode, heads, local_attn_ctx, blocksize, num_verts, vertsize)
        for name, width in (("key_width", key_width), ("value_width", value_width)):
            check_heads(heads, name, width)
        members: dict[tuple[str, ...], list[int]] = {}
        for head in range(heads):
            members.setdefault(modes[head % len(modes)].names, []).append(head)
        self.heads = heads
        self.order = np.argsort(np.concatenate(list(members.values())))
        self.groups = []
        for group in members.values():
            caches = []
            for factor in _factors([modes[head % len(modes)] for head in group], n_ctx):
                rows = len(group) * (factor.cache.capacity + _SPARE)
                keys, values = (
                    tf.Variable(tf.zeros([rows, batch, width // heads], dtype), trainable=False)
                    for width in (key_width, value_width)
                )
                caches.append((factor, keys, values))
            self.groups.append((group, caches))

    @tf.autograph.experimental.do_not_convert
    def __call__(self, q, k, v, position) -> tf.Tensor:
        def split(x):  # [batch, width] -> [heads, batch, width / heads]
            return tf.transpose(tf.reshape(x, [-1, self.heads, x.shape[-1] // self.heads]), [1, 0, 2])

        qkv = [split(x) for x in (q, k, v)]
        outs = [
            _attend([tf.gather(x, group) for x in qkv], caches, position) for group, caches in self.groups
        ]
        out = tf.gather(tf.concat(outs, axis=0), self.order)  # [heads, batch, value_dim]
        return tf.reshape(tf.transpose(out, [1, 0, 2]), [-1, self.heads * out.shape[-1]])


# Beside its slots each head's cache has one of zeros, read where nothing is seen, and one for keys that nobody reads.
_SPARE = 2


def _attend(qkv, caches, position):
    """q, k, v [heads, batch, dim] -> out [heads, batch, value_dim]; the caches take position's key and value."""
    q, k, v = qkv
    scores, seen_values = [], []
    for factor, keys, values in caches:
        zeros, unread = factor.cache.capacity, factor.cache.capacity + 1
        base = tf.range(q.shape[0])[:, None] * (
            factor.cache.capacity + _SPARE
        )  # [heads, 1]: the heads' caches in a row
        slot = tf.where(factor.keeps(position), factor.cache.slot(position), unread)
        rows = tf.reshape(base + slot, [-1])
        for cache, x in ((keys, k), (values, v)):
            cache.scatter_update(tf.IndexedSlices(tf.cast(x, cache.dtype), rows))

        reach = factor.cache.reach(position)  # [heads or 1, m]
        seen = (reach >= 0) & factor.sees(position, reach)
        rows = base + tf.where(seen, factor.cache.slot(reach), zeros)
        # sparse_read, as a read of the whole variable would make the next update copy it.
        near = tf.cast(keys.sparse_read(rows), tf.float32)  # [heads, m, batch, head_dim]
        score = tf.einsum("hbd,hmbd->hmb", tf.cast(q, tf.float32), near) * q.shape[-1] ** -0.5
        scores.append(tf.where(seen[..., None], score, -np.inf))
        seen_values.append(tf.cast(values.sparse_read(rows), tf.float32))
    score = tf.concat(scores, axis=1)
    top = tf.maximum(
        tf.reduce_max(score, axis=1, keepdims=True), tf.float32.min
    )  # finite where nothing is seen
    weight = tf.exp(score - top)
    out = tf.einsum("hmb,hmbd->hbd", weight, tf.concat(seen_values, axis=1))
    return tf.math.divide_no_nan(out, tf.reduce_sum(weight, axis=1)[..., None])
