"""Attention for one position at a time: sampling that keeps only the keys and values a query can still reach.

The mask comes from the predicates of blocksparse.plan.patterns, as that of training does; where the keys of each factor
live comes from the table of modes beside them. So one step touches O(sqrt n) keys.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.ops import control_flow_util

from blocksparse.plan.checks import check_heads, check_positive
from blocksparse.plan.modes import TABLE, Cache, Mode, head_modes
from blocksparse.plan.patterns import Pattern
from blocksparse.tensors import TensorLike, do_not_convert


@dataclass(frozen=True)
class Factor:
    """One factor of a pattern, and the cache that holds its keys.

    sees(i, j): whether query i reads key j from this cache; a key that an earlier factor holds is not read again.
    keeps(j): whether the cache takes key j.
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
        cache = TABLE[name].cache(mode, n_ctx)
        factors.append(Factor(cache, unread.sees, cache.keeps or (lambda j, own=pattern: own.sees(j, j))))
    return factors


@dataclass(frozen=True)
class Group:
    """Heads whose modes have the same names, and what each of their factors reads: (factor, number of its cache)."""

    heads: list[int]
    caches: list[tuple[Factor, int]]


# Beside its slots each head's cache has one of zeros, read where nothing is seen, and one for keys that nobody reads.
_SPARE = 2


class DecodeStep(tf.Module):
    """softmax(q k^T / sqrt(head_dim)) v of one query over the keys that its pattern lets it see.

    Fed 0, 1, 2, ..., the outputs equal the rows of `blocksparse_attention_impl` to rounding. A step costs what the
    pattern shows one query: local_attn_ctx for `local` and `chunk`, n_ctx / local_attn_ctx for `strided`, that times
    vertsize * blocksize for `summary`. The caches are variables, which change in place; those of `all` and `strided`
    hold every position, the others what can still be reached.

        step = DecodeStep(batch, n_ctx, key_width, value_width, heads, "fixed", 128, 32, num_verts=4, vertsize=1)
        out = step(q, k, v, position)

    Args: batch; n_ctx, the positions there can be; the widths over all heads; the pattern as in
        `blocksparse_attention_impl`; dtype of the caches.
    Call: q, k [batch, key_width], v [batch, value_width] of any float dtype; position, an integer or a scalar integer
        tensor from 0 to n_ctx - 1. Returns float32 [batch, value_width].
    Raises: ValueError and TypeError for arguments that do not fit. A position that is known only when a graph runs ends
        it with InvalidArgumentError. Code compiled by XLA cannot stop: there a position out of range gives NaN. In no
        case does it change the caches.

    A tf.Module: made outside tf.function and called inside; its caches are saved in SavedModels and checkpoints. A new
    sequence just starts at position 0 again; `reset` forgets what the caches hold. Softmax and sums run in float32; a
    query that sees no key gives zeros.
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
        name: str | None = None,
    ):
        super().__init__(name=name)
        sizes = dict(batch=batch, n_ctx=n_ctx, key_width=key_width, value_width=value_width)
        for argument, size in sizes.items():
            check_positive(argument, size)
        modes = head_modes(attn_mode, heads, local_attn_ctx, blocksize, num_verts, vertsize)
        for argument in ("key_width", "value_width"):
            check_heads(heads, argument, sizes[argument])
        self.batch, self.n_ctx, self.heads = batch, n_ctx, heads
        self.key_width, self.value_width = key_width, value_width
        self.keys: list[tf.Variable] = []
        self.values: list[tf.Variable] = []
        # In an object of its own, since tf.Module follows lists that are its attributes in search of variables.
        self._groups = _Groups(modes, heads, n_ctx)
        for group in self._groups.groups:
            for factor, _ in group.caches:
                rows = len(group.heads) * (factor.cache.capacity + _SPARE)
                for caches, width in ((self.keys, key_width), (self.values, value_width)):
                    zeros = tf.zeros([rows, batch, width // heads], dtype)
                    caches.append(tf.Variable(zeros, trainable=False, name="cache"))

    @property
    def groups(self) -> list[Group]:
        """Which heads read from which caches."""
        return self._groups.groups

    def reset(self) -> None:
        """Fill the caches with zeros."""
        for cache in (*self.keys, *self.values):
            cache.assign(tf.zeros_like(cache))

    @do_not_convert
    def __call__(self, q: TensorLike, k: TensorLike, v: TensorLike, position: TensorLike) -> tf.Tensor:
        q, k = self._rows("q", q, self.key_width), self._rows("k", k, self.key_width)
        v = self._rows("v", v, self.value_width)
        position, valid = self._position(position)
        outs = []
        for group in self.groups:
            qkv = [tf.gather(x, group.heads) for x in (q, k, v)]
            caches = [(factor, self.keys[number], self.values[number]) for factor, number in group.caches]
            outs.append(_attend(qkv, caches, position, valid))
        out = tf.gather(tf.concat(outs, axis=0), self._groups.order)  # [heads, batch, value_dim]
        return tf.reshape(tf.transpose(out, [1, 0, 2]), [self.batch, self.value_width])

    def _rows(self, name: str, x: TensorLike, width: int) -> tf.Tensor:
        """[batch, width] -> float32 [heads, batch, width / heads]"""
        x = tf.convert_to_tensor(x)
        if not x.dtype.is_floating:
            raise TypeError(f"{name} has dtype {x.dtype.name}; it has to be of a float dtype: cast it")
        wanted = [self.batch, width]
        if not x.shape.is_compatible_with(wanted):
            raise ValueError(
                f"{name} has shape {x.shape}; this DecodeStep takes [batch, width] = {wanted}: give so many rows, or "
                f"make one for another batch"
            )
        x = tf.reshape(
            tf.ensure_shape(tf.cast(x, tf.float32), wanted), [self.batch, self.heads, width // self.heads]
        )
        return tf.transpose(x, [1, 0, 2])

    def _position(self, position: TensorLike) -> tuple[tf.Tensor, tf.Tensor]:
        """The position as an int32 scalar, and whether there is such a one."""
        x = tf.convert_to_tensor(position)
        if not x.dtype.is_integer or isinstance(position, bool):
            raise TypeError(f"position is {position!r}; it has to be an integer or a scalar integer tensor")
        if x.shape.rank not in (0, None):
            raise ValueError(
                f"position has shape {x.shape}; it has to be a scalar: all rows are at one position"
            )
        x = x if x.dtype in (tf.int32, tf.int64) else tf.cast(x, tf.int64)  # n_ctx need not fit a smaller one
        wanted = f"this DecodeStep has positions 0 to {self.n_ctx - 1}: make one with a larger n_ctx"
        known = tf.get_static_value(x)
        if known is not None and not 0 <= known < self.n_ctx:
            raise ValueError(f"position={known} does not exist; {wanted}")
        valid = (x >= 0) & (x < self.n_ctx)
        if known is None and not control_flow_util.GraphOrParentsInXlaContext(
            tf.compat.v1.get_default_graph()
        ):
            check = tf.debugging.Assert(valid, ["position does not exist; " + wanted, x])
            with tf.control_dependencies([check]):
                x = tf.identity(x)
        return tf.cast(x, tf.int32), valid


class _Groups:
    """The heads of a pattern, grouped by the names of their modes."""

    def __init__(self, modes: Sequence[Mode], heads: int, n_ctx: int):
        members: dict[tuple[str, ...], list[int]] = {}
        for head in range(heads):
            members.setdefault(modes[head % len(modes)].names, []).append(head)
        self.order = np.argsort(np.concatenate(list(members.values())))
        self.groups: list[Group] = []
        for group in members.values():
            factors = _factors([modes[head % len(modes)] for head in group], n_ctx)
            first = sum(len(earlier.caches) for earlier in self.groups)
            self.groups.append(Group(group, [(factor, first + at) for at, factor in enumerate(factors)]))


def _attend(qkv, caches, position, valid):
    """q, k, v [heads, batch, dim] -> out [heads, batch, value_dim]; the caches take position's key and value.

    Where the position is not valid, out is NaN and the caches keep what they hold.
    """
    q, k, v = qkv
    scores, seen_values = [], []
    for factor, keys, values in caches:
        cache = factor.cache
        zeros, unread = cache.capacity, cache.capacity + 1
        base = tf.range(q.shape[0])[:, None] * (
            cache.capacity + _SPARE
        )  # [heads, 1]: the heads' caches in a row
        slot = tf.where(factor.keeps(position) & valid, cache.slot(position), unread)
        rows = tf.reshape(base + slot, [-1])
        for held, x in ((keys, k), (values, v)):
            held.scatter_update(tf.IndexedSlices(tf.cast(x, held.dtype), rows))

        reach = cache.reach(position)  # [heads or 1, m]
        seen = (reach >= 0) & factor.sees(position, reach) & valid
        rows = base + tf.where(seen, cache.slot(reach), zeros)
        # sparse_read, as a read of the whole variable would make the next update copy it.
        near = tf.cast(keys.sparse_read(rows), tf.float32)  # [heads, m, batch, head_dim]
        score = tf.einsum("hbd,hmbd->hmb", q, near) * q.shape[-1] ** -0.5
        scores.append(tf.where(seen[..., None], score, -np.inf))
        seen_values.append(tf.cast(values.sparse_read(rows), tf.float32))
    score = tf.concat(scores, axis=1)
    top = tf.reduce_max(score, axis=1, keepdims=True)
    weight = tf.exp(score - tf.maximum(top, tf.float32.min))  # finite where nothing is seen
    out = tf.einsum("hmb,hmbd->hbd", weight, tf.concat(seen_values, axis=1))
    out = tf.math.divide_no_nan(out, tf.reduce_sum(weight, axis=1)[..., None])
    return tf.where(valid, out, np.nan)
