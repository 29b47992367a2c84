"""Attention for one position at a time: sampling that keeps only the keys and values a query can still reach."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np
import tensorflow as tf

from blocksparse.native.devices import in_xla
from blocksparse.plan.checks import check_heads, check_kv_heads, check_looks_back, check_positive
from blocksparse.plan.modes import head_modes
from blocksparse.tensors import TensorLike, as_indices, do_not_convert

from .decode_groups import Group, Groups


class DecodeStep(tf.Module):
    """softmax(q k^T / sqrt(head_dim)) v of one query over the keys that its pattern lets it see.

    Fed 0, 1, 2, ..., the outputs equal the rows of `blocksparse_attention_impl` to rounding. A step costs what the
    pattern shows one query: local_attn_ctx for `local` and `chunk`, n_ctx / local_attn_ctx for `strided`, that times
    vertsize * blocksize for `summary`. The caches are variables, which change in place; those of `all` and `strided`
    hold every position, the others what can still be reached. `prefill` fills them with a whole prompt.

        step = DecodeStep(batch, n_ctx, key_width, value_width, heads, "fixed", 128, 32, num_verts=4, vertsize=1)
        out = step(q, k, v, position)

    Args: batch; n_ctx, the positions there can be; the widths of q and of the output over all heads; the pattern and
        kv_heads as in `blocksparse_attention_impl`; dtype of the caches.
    Call: q [batch, key_width], k [batch, key_width * kv_heads / heads], v [batch, value_width * kv_heads / heads] of
        any float dtype; position, an integer or an integer
        tensor from 0 to n_ctx - 1: a scalar, or [batch] where the rows are at different positions. Returns float32
        [batch, value_width]. Where the pattern is a `prefix`, position begins behind it, and `prefill` took all of it.
    Raises: ValueError and TypeError for arguments that do not fit, causal=False among them. A position that is known
        only when a graph runs ends it with InvalidArgumentError, and so does a position out of order. Code compiled
        by XLA cannot stop: there such a row gives NaN. In no case does it change the caches.

    Positions come in order, in every row for itself: the next, the last one again, or 0, where a new sequence starts.
    Where no key takes an old one's place (`all`, `strided`, `summary`), any earlier position may follow, too, and what
    was fed behind it is forgotten; other patterns go back by `prefill`.
    A tf.Module: made outside tf.function and called inside; its caches are saved in SavedModels and checkpoints.
    `reset` forgets what the caches hold. Softmax and sums run in float32; a query that sees no key gives zeros.
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
        causal: bool = True,
        name: str | None = None,
        kv_heads: int | None = None,
    ):
        super().__init__(name=name)
        sizes = dict(batch=batch, n_ctx=n_ctx, key_width=key_width, value_width=value_width)
        for argument, size in sizes.items():
            check_positive(argument, size)
        modes = head_modes(attn_mode, heads, local_attn_ctx, blocksize, num_verts, vertsize, causal)
        check_looks_back(causal)
        for argument in ("key_width", "value_width"):
            check_heads(heads, argument, sizes[argument])
        dtype = tf.as_dtype(dtype)
        if not dtype.is_floating:
            raise TypeError(f"dtype is {dtype.name}; keys and values want a float dtype, such as tf.float16")
        self.batch, self.n_ctx, self.heads = batch, n_ctx, heads
        self.prefix = max(mode.prefix for mode in modes)  # so many first positions are no steps
        self.kv_heads = check_kv_heads(kv_heads, heads)
        self.key_width, self.value_width = key_width, value_width
        self.caches: list[tf.Variable] = []
        # In an object of its own, since tf.Module follows lists that are its attributes in search of variables.
        self._groups = Groups(modes, heads, self.kv_heads, batch, n_ctx)
        # How many positions each row was fed; int64, as TensorFlow keeps int32 variables on the host.
        self._fed = tf.Variable(tf.zeros([batch], tf.int64), trainable=False, name="fed")
        for group in self._groups.groups:
            zeros = tf.zeros(
                [batch * group.slots * len(group.keys), (key_width + value_width) // heads], dtype
            )
            self.caches.append(tf.Variable(zeros, trainable=False, name="cache"))

    @property
    def groups(self) -> list[Group]:
        """Which heads share a cache, and what it holds."""
        return self._groups.groups

    @property
    def widths(self) -> tuple[int, int, int]:
        """Of q, k and v, over their heads."""
        group = self.heads // self.kv_heads
        return self.key_width, self.key_width // group, self.value_width // group

    def reset(self) -> None:
        """Fill the caches with zeros."""
        for variable in (self._fed, *self.caches):
            variable.assign(tf.zeros_like(variable))

    @do_not_convert
    def reorder(self, rows: TensorLike) -> None:
        """Let row b of the batch go on from where row rows[b] is: beams that part, sequences that others replace.

        rows: an integer tensor [batch], 0 to batch - 1.
        Raises: ValueError, TypeError for what does not fit; InvalidArgumentError for numbers known only when a graph
            runs. Code compiled by XLA cannot stop: there the nearest row is taken.
        """
        rows = as_indices("rows", rows)
        if rows.shape.as_list() != [self.batch]:
            raise ValueError(
                f"rows has shape {rows.shape}; it has to be one number a row: [batch] = [{self.batch}]"
            )
        last = self.batch - 1
        rows, _ = _within("rows", rows, 0, last, f"this DecodeStep has rows 0 to {last}")
        rows = tf.clip_by_value(rows, 0, last)
        for variable in (self._fed, *self.caches):
            each = tf.reshape(variable.read_value(), [self.batch, -1])
            variable.assign(tf.reshape(tf.gather(each, rows), variable.shape))

    @do_not_convert
    def __call__(self, q: TensorLike, k: TensorLike, v: TensorLike, position: TensorLike) -> tf.Tensor:
        q, k, v = (self._rows(name, x) for name, x in (("q", q), ("k", k), ("v", v)))
        i, valid = self._in_order(*self._integers("position", position, self.prefix, self.n_ctx - 1))
        q = tf.cast(q, tf.float32) * q.shape.as_list()[-1] ** -0.5
        kv = tf.concat([tf.cast(x, self.caches[0].dtype) for x in (k, v)], axis=-1)
        outs = []
        for group, cache in zip(self.groups, self.caches, strict=True):
            own = _chosen(q, group.heads), _chosen(kv, group.keys)
            outs.append(_attend(*own, group, cache, i, valid))
        out = _chosen(outs[0] if len(outs) == 1 else tf.concat(outs, axis=1), self._groups.order)
        out = tf.where(valid, out, np.nan)
        return tf.reshape(out, [self.batch, self.value_width])

    @do_not_convert
    def prefill(self, k: TensorLike, v: TensorLike, lengths: TensorLike | None = None) -> None:
        """Fill the caches as stepping through the keys and values of a prompt would, all positions at once.

        Args: k and v as a step takes them, [batch, time, width], time at most n_ctx; lengths, how many positions
            of it count, an integer tensor that is a scalar or [batch], time by default. The next step is at position
            lengths.
        Raises: ValueError and TypeError as a step does, for lengths that are not 0 to time; where those are known only
            when a graph runs, InvalidArgumentError. Code compiled by XLA fills that row with NaN.
        """
        k = tf.convert_to_tensor(k)
        time = k.shape.as_list()[1] if k.shape.rank == 3 else 1  # another rank is refused below, in words
        if time is None or time > self.n_ctx:
            raise ValueError(
                f"k has {time} positions; this DecodeStep takes a known number, {self.n_ctx} at most: cut the prompt, "
                "or make one with a larger n_ctx"
            )
        k, v = self._rows("k", k, time), self._rows("v", v, time)
        count, valid = self._integers("lengths", time if lengths is None else lengths, self.prefix, time)
        kv = tf.concat([tf.cast(x, self.caches[0].dtype) for x in (k, v)], axis=-1)
        kv = tf.reshape(kv, [self.batch, time, self.kv_heads, kv.shape.as_list()[-1]])
        kv = tf.where(valid[..., None], kv, np.nan)
        self._feed(count, valid)
        if time == 0:
            return
        for group, cache in zip(self.groups, self.caches, strict=True):
            cache.assign(group.filled(tf.gather(kv, group.keys, axis=2), count))

    def _in_order(self, i: tf.Tensor, valid: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """i and valid, which is False now, too, where keys that query i would see were not fed or are gone."""
        fed = tf.cast(self._fed.read_value(), tf.int32)[:, None, None]
        ordered = (i == 0) | (i <= fed) & (self._groups.keep_all | (i >= fed - 1))
        if i.shape.as_list()[0] == 1:
            ordered = tf.reduce_all(ordered, axis=0, keepdims=True)
        i = _told_order(i, fed, ordered | ~valid)
        valid &= ordered
        self._feed(i + 1, valid)
        return i, valid

    def _feed(self, count: tf.Tensor, valid: tf.Tensor) -> None:
        """So many positions [batch or 1, 1, 1] are in the caches now, where valid."""
        count = tf.where(valid, tf.cast(count, tf.int64), self._fed.read_value()[:, None, None])
        self._fed.assign(count[:, 0, 0])

    def _rows(self, name: str, x: TensorLike, *time: int) -> tf.Tensor:
        """[batch, *time, width] -> [batch, *time, heads, width / heads], of q, k or v"""
        width, heads = self.widths["qkv".index(name)], self.heads if name == "q" else self.kv_heads
        x = tf.convert_to_tensor(x)
        if not x.dtype.is_floating:
            raise TypeError(f"{name} has dtype {x.dtype.name}; it has to be of a float dtype: cast it")
        wanted = [self.batch, *time, width]
        if not x.shape.is_compatible_with(wanted):
            raise ValueError(
                f"{name} has shape {x.shape}; this DecodeStep takes [batch, {'time, ' * len(time)}width] = {wanted}: "
                "give so many rows, or make one for another batch"
            )
        return tf.reshape(tf.ensure_shape(x, wanted), [*wanted[:-1], heads, width // heads])

    def _integers(self, name: str, given: TensorLike, first: int, last: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Positions or numbers of them as int32 [batch or 1, 1, 1], and whether they are first to last."""
        x = tf.convert_to_tensor(given)
        if not x.dtype.is_integer or isinstance(given, bool):
            raise TypeError(
                f"{name} is {given!r}; it has to be an integer, or an integer tensor that is a scalar or [batch]"
            )
        if x.shape.rank is None or (x.shape.rank and x.shape.as_list() != [self.batch]):
            raise ValueError(
                f"{name} has shape {x.shape}; it has to be a scalar, or one number a row: [batch] = [{self.batch}]"
            )
        x = as_indices(name, x)  # `last` need not fit a smaller dtype
        wanted = dict(
            position=f"this DecodeStep has positions {first} to {last}: make one with a larger n_ctx",
            lengths=f"k and v have {last} positions: give at most so many",
        )[name]
        if first:
            wanted += f"; the first {first} see each other: prefill takes all of them at once"
        x, valid = _within(name, x, first, last, wanted)
        return tf.reshape(tf.cast(x, tf.int32), [-1, 1, 1]), tf.reshape(valid, [-1, 1, 1])


def _within(name: str, x: tf.Tensor, first: int, last: int, wanted: str) -> tuple[tf.Tensor, tf.Tensor]:
    """x, and whether it is first to last. Raises ValueError where it is known here that it is not."""
    known = tf.get_static_value(x)
    if known is not None and not np.all((known >= first) & (known <= last)):
        raise ValueError(f"{name}={known} does not exist; {wanted}")
    valid = (x >= first) & (x <= last)
    return (x if known is not None else _if(valid, x, f"{name} does not exist; {wanted}", x)), valid


def _told_order(i: tf.Tensor, fed: tf.Tensor, good: tf.Tensor) -> tf.Tensor:
    """i, where it is in order; eagerly ValueError."""
    words = "feed the next one, the last one again, or 0, where a new sequence starts; prefill feeds a prompt"
    given, held = i[:, 0, 0], fed[:, 0, 0]
    if tf.executing_eagerly():
        if not tf.reduce_all(good):
            numbers = [", ".join(map(str, np.unique(x))) for x in (given, held)]
            raise ValueError(f"position={numbers[0]} is out of order, {numbers[1]} were fed: {words}")
        return i
    return _if(good, i, f"position is out of order: {words}; given, and fed:", given, held)


def _if(good: tf.Tensor, x: tf.Tensor, *words) -> tf.Tensor:
    """x, for which a graph ends with these words where not all is good. Code compiled by XLA cannot stop."""
    if in_xla():
        return x
    with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(good), list(words))]):
        return tf.identity(x)


def _chosen(x, heads: list[int]):
    """These heads of x [batch, heads, ...]."""
    return x if heads == list(range(x.shape[1])) else tf.gather(x, heads, axis=1)


def _attend(q, kv, group, cache, i, valid):
    """q [batch, heads, dim], kv [batch, caches, key_dim + value_dim] -> out [batch, heads, value_dim].

    The cache takes the key and value of position i, [batch or 1, 1, 1], where that is valid.
    """
    group.write(cache, kv, i, valid)
    batch, heads, dim = q.shape
    q = tf.reshape(
        q, [batch, 1, len(group.keys), -1, dim]
    )  # the heads that read a cache on an axis of their own
    seen = [group.seen(run, i, valid) for run in group.runs]
    held = [tf.cast(group.read(cache, run, i), tf.float32) for run in group.runs]
    scores = []
    for its, run in zip(seen, held, strict=True):
        score = tf.reduce_sum(q * run[..., None, :dim], axis=-1)
        scores.append(tf.where(its[..., None], score, -np.inf))  # [batch, keys, caches, heads of each]
    top = reduce(tf.maximum, [tf.reduce_max(score, axis=1, keepdims=True) for score in scores])
    top = tf.maximum(top, tf.float32.min)  # finite where nothing is seen
    out, total = 0.0, 0.0
    for score, its, run in zip(scores, seen, held, strict=True):
        weight = tf.exp(score - top)
        # A slot that is not seen may hold a NaN of a key long gone, and 0 times that is one.
        values = tf.where(its[..., None], run[..., dim:], 0.0)
        out += tf.reduce_sum(weight[..., None] * values[..., None, :], axis=1)
        total += tf.reduce_sum(weight, axis=1)
    return tf.reshape(tf.math.divide_no_nan(out, total[..., None]), [batch, heads, -1])
