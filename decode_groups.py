"""Where a decoding step's caches keep their keys, and which of them a query reads.

The mask comes from the predicates of blocksparse.plan.patterns, as that of training does; where the keys of each factor
live comes from the table of modes beside them. So one step touches O(sqrt n) keys, and those lie side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.compiler.tf2xla.ops import gen_xla_ops

from blocksparse.native.devices import in_xla
from blocksparse.plan.caches import Cache
from blocksparse.plan.modes import TABLE, Mode
from blocksparse.plan.patterns import Pattern


@dataclass(frozen=True)
class Factor:
    """One factor of a pattern, and the slots that hold its keys: `cache`, which begins at slot `offset` of its group.

    sees(i, j): whether query i reads key j from this cache; a key that an earlier factor holds is not read again.
    keeps(j): whether the cache takes key j.
    """

    cache: Cache
    offset: int
    sees: Callable
    keeps: Callable


def _factors(modes: list[Mode], n_ctx: int) -> list[Factor]:
    """The factors of caches whose modes have the same names; only their summary columns may differ."""
    first: Any = None  # [caches], as the predicates take arrays in the place of integers
    last: Any = None
    if modes[0].first is not None:
        first, last = (
            np.array([getattr(mode, end) for mode in modes], np.int32) for end in ("first", "last")
        )
    factors: list[Factor] = []
    held: list[Pattern] = []
    for name in modes[0].parts:
        mode = Mode((name,), modes[0].local_attn_ctx, first, last)
        pattern = mode.pattern()
        unread = reduce(lambda rest, earlier: rest & ~earlier, held, pattern)
        held.append(pattern)
        cache = TABLE[name].cache(mode, n_ctx)
        offset = sum(earlier.cache.capacity for earlier in factors)
        keeps = cache.keeps or (lambda j, own=pattern: own.sees(j, j))
        factors.append(Factor(cache, offset, unread.sees, keeps))
    return factors


class Group:
    """Heads whose modes have the same names, and how they write and read what they can still reach.

    heads: query heads, those that read one cache side by side. keys: the key head that each cache keeps keys of; heads
    that read one key head share a cache where they have one mode.
    The variable is [batch * slots * caches, key_dim + value_dim]: a key and its value side by side, one write for both.
    The last slot of every row of the batch takes what nobody will read.
    """

    def __init__(self, heads: list[int], keys: list[int], modes: list[Mode], batch: int, n_ctx: int):
        self.heads, self.keys, self.modes, self.batch = heads, keys, modes, batch
        self.factors = _factors(modes, n_ctx)
        self.slots = sum(factor.cache.capacity for factor in self.factors) + 1
        self.runs: list[list[Factor]] = []  # read at once: caches that are read whole lie side by side
        for factor in self.factors:
            if self.runs and factor.cache.runs == self.runs[-1][-1].cache.runs == 1:
                self.runs[-1].append(factor)
            else:
                self.runs.append([factor])

    def keeps_all(self, n_ctx: int) -> bool:
        """Whether no key ever takes the place of another."""
        j = np.arange(n_ctx)[:, None]
        kept = (factor.cache.slot(j)[factor.keeps(j)[:, 0]] for factor in self.factors)
        return all(len(np.unique(slots)) == len(slots) for slots in kept)

    def write(self, cache: tf.Variable, kv: tf.Tensor, i, valid) -> None:
        """The cache takes kv [batch, caches, key_dim + value_dim] of the positions i, [batch or 1, 1, 1], if valid.

        While positions are valid every key has a row of its own, as writes to one row wait for each other on a GPU.
        """
        places = []
        for factor in self.factors:
            place = tf.where(factor.keeps(i) & valid, factor.offset + factor.cache.slot(i), self.slots - 1)
            places.append(tf.broadcast_to(self._row(place), [self.batch, 1, len(self.keys)]))
        places = tf.concat(places, axis=1)
        rows = tf.broadcast_to(kv[:, None], [*places.shape, kv.shape.as_list()[-1]])
        cache.scatter_update(tf.IndexedSlices(tf.reshape(rows, [-1, kv.shape[-1]]), tf.reshape(places, [-1])))

    def seen(self, run: list[Factor], i, valid) -> tf.Tensor:
        """Which slots of a run the queries i see: [batch or 1, length, caches]."""
        found = []
        for factor in run:
            reach = factor.cache.reach(i)
            seen = (reach >= 0) & factor.sees(i, reach) & valid
            found.append(tf.broadcast_to(seen, [seen.shape[0], factor.cache.length, len(self.keys)]))
        return found[0] if len(found) == 1 else tf.concat(found, axis=1)

    def read(self, cache: tf.Variable, run: list[Factor], i) -> tf.Tensor:
        """What the queries i read of a run: [batch, length, caches, key_dim + value_dim]."""
        first, length = run[0], sum(factor.cache.length for factor in run)
        begin = first.offset + first.cache.run(i) * first.cache.length
        if not in_xla():  # a read of the whole variable would make the next update copy it
            return cache.sparse_read(self._row(begin + np.arange(length, dtype=np.int32)[:, None]))
        held = tf.reshape(cache.read_value(), [self.batch, self.slots, len(self.keys), -1])
        if first.cache.runs == 1:
            return held[:, first.offset : first.offset + length]
        if i.shape.as_list()[0] == 1:
            at = tf.stack([0, tf.reshape(begin, []), 0, 0])
            return _sliced(held, at, [self.batch, length, *held.shape.as_list()[2:]])
        return tf.gather(held, begin[:, :, 0] + np.arange(length, dtype=np.int32), axis=1, batch_dims=1)

    def filled(self, kv: tf.Tensor, count) -> tf.Tensor:
        """The cache once the first `count` [batch or 1, 1, 1] of kv [batch, time, caches, dim] went in."""
        time, dim = kv.shape.as_list()[1], kv.shape.as_list()[-1]
        batch, one = np.arange(self.batch)[:, None, None], np.arange(len(self.keys))
        rows = []
        for factor in self.factors:
            held = tf.clip_by_value(factor.cache.holds(count), 0, time - 1)
            rows.append(tf.cast((batch * time + held) * len(self.keys) + one, tf.int32))
        held = tf.gather(tf.reshape(kv, [-1, dim]), tf.concat(rows, axis=1))
        return tf.reshape(tf.pad(held, [[0, 0], [0, 1], [0, 0], [0, 0]]), [-1, dim])

    def _row(self, slot):
        """[batch or 1, m, caches or 1] -> the rows [batch, m, caches] of the variable."""
        batch = np.arange(self.batch, dtype=np.int32)[:, None, None]
        return (batch * self.slots + slot) * len(self.keys) + np.arange(len(self.keys), dtype=np.int32)


def _sliced(x: tf.Tensor, at, shape) -> tf.Tensor:
    """x from `at` on, under XLA alone: tf.slice would lose the shape."""
    size = tf.constant(list(shape), tf.int32)
    return tf.ensure_shape(gen_xla_ops.xla_dynamic_slice(x, at, size), shape)


class Groups:
    """The heads of a pattern, grouped by the names of their modes and by how many of them share a cache."""

    def __init__(self, modes: Sequence[Mode], heads: int, kv_heads: int, batch: int, n_ctx: int):
        readers: dict[tuple[int, Mode], list[int]] = {}  # of one cache: the heads with this key head and mode
        for head in range(heads):
            readers.setdefault((head * kv_heads // heads, modes[head % len(modes)]), []).append(head)
        members: dict[tuple, list[tuple[int, Mode]]] = {}
        for cache, own in readers.items():
            members.setdefault((cache[1].names, len(own)), []).append(cache)
        self.groups = []
        for caches in members.values():
            keys, own_modes = map(list, zip(*caches, strict=True))
            own_heads = [head for cache in caches for head in readers[cache]]
            self.groups.append(Group(own_heads, keys, own_modes, batch, n_ctx))
        self.order = np.argsort(np.concatenate([group.heads for group in self.groups])).tolist()
        self.keep_all = all(group.keeps_all(n_ctx) for group in self.groups)
