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

if __package__:
    from .patterns import Mode, Pattern, head_modes
else:
    from patterns import Mode, Pattern, head_modes


@dataclass(frozen=True)
class Factor:
    """One factor of a pattern, and the cache of `capacity` slots that holds its keys.

    sees(i, j): whether query i reads key j from this cache; a key that an earlier factor holds is not read again.
    keeps(j): whether the cache takes key j: where j's own query sees it, as nobody sees it otherwise.
    reach(i): positions [heads or 1, m] among which query i finds all that it sees.
    slot(j): place of position j in the cache.
    """

    capacity: int
    sees: Callable
    keeps: Callable
    reach: Callable
    slot: Callable


def _cache(mode: Mode, n_ctx: int) -> tuple[int, Callable, Callable]:
    """Capacity, reach and slot of a mode that is one factor."""
    (name,) = mode.names
    if name == "all":
        return n_ctx, lambda i: tf.range(n_ctx)[None], lambda j: j
    length: Any = mode.local_attn_ctx
    chunks = -(-n_ctx // length)
    if name == "local":  # a ring: a position takes the place of one that nobody reaches any more
        window = min(length, n_ctx)
        return window, lambda i: i - tf.range(window)[None], lambda j: j % window
    if name == "strided":  # every key is reached again, but a query reaches only n / length of them
        return n_ctx, lambda i: i - length * tf.range(chunks)[None], lambda j: j
    if name == "chunk":
        return length, lambda i: i // length * length + tf.range(length)[None], lambda j: j % length
    first: Any = mode.first
    last: Any = mode.last
    columns = int(np.max(last - first))
    slots = np.arange(chunks * columns)[None]
    positions = slots // columns * length + first + slots % columns  # [heads, m]
    return (
        slots.size,
        lambda i: tf.constant(positions, tf.int32),
        lambda j: j // length * columns + j % length - first,
    )


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
    for name in "+".join(modes[0].names).replace("fixed", "chunk+summary").split("+"):
        mode = Mode((name,), modes[0].local_attn_ctx, first, last)
        pattern = mode.pattern()
        unread = reduce(lambda rest, earlier: rest & ~earlier, held, pattern)
        held.append(pattern)
        capacity, reach, slot = _cache(mode, n_ctx)
        factors.append(Factor(capacity, unread.sees, lambda j, own=pattern: own.sees(j, j), reach, slot))
    return factors


class DecodeStep:
    """softmax(q k^T / sqrt(head_dim)) v of one query over the keys that its pattern lets it see.

    The arguments are `blocksparse_attention_impl`'s, and fed 0, 1, 2, ... the outputs equal its rows to rounding. A
    step costs what the pattern shows one query: local_attn_ctx for `local` and `chunk`, n_ctx / local_attn_ctx for
    `strided`, that times vertsize * blocksize for `summary`; the cache of all but `all` and `strided` is as small.

        step = DecodeStep(n_ctx, heads, "fixed", 128, 32, num_verts=4, vertsize=1)
        state = step.initial(batch, key_width, value_width)
        out, state = step(q, k, v, state, position)     # q, k, v [batch, width] -> out [batch, value_width]

    State is a nest of tensors for tf.while_loop. Softmax and sums run in float32; a query that sees no key gives zeros.
    """

    def __init__(
        self,
        n_ctx: int,
        heads: int,
        attn_mode: str | Sequence[str] = "all",
        local_attn_ctx: int | None = None,
        blocksize: int = 32,
        num_verts: int | None = None,
        vertsize: int | None = None,
    ):
        modes = head_modes(attn_mode, heads, local_attn_ctx, blocksize, num_verts, vertsize)
        groups: dict[tuple[str, ...], list[int]] = {}
        for head in range(heads):
            groups.setdefault(modes[head % len(modes)].names, []).append(head)
        self.heads = heads
        self.groups = [
            (members, _factors([modes[head % len(modes)] for head in members], n_ctx))
            for members in groups.values()
        ]
        self.order = np.argsort(np.concatenate(list(groups.values())))

    def initial(self, batch: int, key_width: int, value_width: int, dtype=tf.float32):
        """Empty caches: (keys, values) [heads, capacity + 1, batch, width / heads] of each factor of each group."""

        def empty(heads, capacity, width):  # one slot more takes what no query will read
            return tf.zeros([heads, capacity + 1, batch, width // self.heads], dtype)

        return [
            [
                (empty(len(heads), f.capacity, key_width), empty(len(heads), f.capacity, value_width))
                for f in factors
            ]
            for heads, factors in self.groups
        ]

    def __call__(self, q, k, v, state, position):
        def split(x):  # [batch, width] -> [heads, batch, width / heads]
            return tf.transpose(tf.reshape(x, [-1, self.heads, x.shape[-1] // self.heads]), [1, 0, 2])

        q, k, v = split(q), split(k), split(v)
        outs, new = [], []
        for (heads, factors), caches in zip(self.groups, state, strict=True):
            of_group = [tf.gather(x, heads) for x in (q, k, v)]
            out, caches = _attend(of_group, factors, caches, position)
            outs.append(out)
            new.append(caches)
        out = tf.gather(tf.concat(outs, axis=0), self.order)  # [heads, batch, value_dim]
        return tf.reshape(tf.transpose(out, [1, 0, 2]), [-1, self.heads * out.shape[-1]]), new


def _attend(qkv, factors, caches, position):
    """q, k, v [heads, batch, dim] -> (out [heads, batch, value_dim], caches with position's key and value)."""
    q, k, v = qkv
    heads = q.shape[0]
    scores, values, new = [], [], []
    for factor, cache in zip(factors, caches, strict=True):
        slot = tf.where(factor.keeps(position), factor.slot(position), factor.capacity)
        index = tf.stack([tf.range(heads), tf.broadcast_to(tf.reshape(slot, [-1]), [heads])], axis=1)
        keys, vals = (
            tf.tensor_scatter_nd_update(c, index, tf.cast(x, c.dtype)) for c, x in zip(cache, (k, v))
        )
        new.append((keys, vals))

        reach = factor.reach(position)  # [heads or 1, m]
        seen = (reach >= 0) & factor.sees(position, reach)
        slots = tf.where(seen, factor.slot(reach), factor.capacity)
        slots = tf.broadcast_to(slots, [heads, tf.shape(slots)[1]])
        near = tf.cast(tf.gather(keys, slots, batch_dims=1), tf.float32)  # [heads, m, batch, head_dim]
        score = tf.einsum("hbd,hmbd->hmb", tf.cast(q, tf.float32), near) * q.shape[-1] ** -0.5
        scores.append(tf.where(seen[..., None], score, -np.inf))
        values.append(tf.cast(tf.gather(vals, slots, batch_dims=1), tf.float32))
    score = tf.concat(scores, axis=1)
    top = tf.maximum(
        tf.reduce_max(score, axis=1, keepdims=True), tf.float32.min
    )  # finite where nothing is seen
    weight = tf.exp(score - top)
    out = tf.einsum("hmb,hmbd->hbd", weight, tf.concat(values, axis=1))
    return tf.math.divide_no_nan(out, tf.reduce_sum(weight, axis=1)[..., None]), new
