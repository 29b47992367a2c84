"""From one predicate of (query, key) to a BlocksparseTransformer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from ..plan.callback import PlannedCallback, Predicate, is_pattern
from ..plan.checks import check_block_size, check_positive, nearest_multiple
from ..plan.lengths import keys_there, ladder, whole
from ..plan.patterns import NO_SHIFT, Pattern
from .object import BlocksparseTransformer

_LARGEST_LAYOUT = 64_000_000  # bytes of a dense layout; longer contexts get scipy.sparse matrices
_ASKED = 4096  # pairs at which a pattern's promises are tried


def from_mask(
    sees: Predicate | Sequence[Predicate],
    query_time: int,
    key_time: int,
    heads: int,
    block_size: int = 64,
    name: str | None = None,
) -> BlocksparseTransformer:
    """The BlocksparseTransformer in which query i sees key j where `sees` says so.

    sees: one of
        a function sees(query, key) of broadcasting int32 arrays of positions, 0 <= query < query_time and
            0 <= key < key_time, that returns their boolean array: use & | ~ for and, or, not. With a third
            parameter called `head` it is asked once for each head, head=0 .. heads - 1;
        a Pattern: such a function of (query, key), and what repeats in it;
        a sequence of either, one a head, cycled over the heads.
        Nothing is causal unless it says so: `key <= query`.
    query_time, key_time: positions, multiples of block_size; they may differ (cross attention).
    heads: number of heads. block_size: 8, 16, 32, 64 or 128.

    A function is asked about every pair, in pieces: time grows with query_time * key_time, memory with the active
    blocks. A Pattern is asked about one block of each kind: a million positions take seconds. Its promises
    are tried at some thousand pairs.
    Raises ValueError and TypeError that name the argument, what came and what is wanted.
    """
    check_positive("heads", heads)
    check_block_size("block_size", block_size)
    for argument, time in (("query_time", query_time), ("key_time", key_time)):
        _check_time(argument, time, block_size)
    predicates = _per_head(sees, heads)
    for predicate in predicates:
        if is_pattern(predicate):
            _check_promises(predicate, query_time, key_time)
    return assemble(predicates, query_time, key_time, heads, block_size, name)


def of_any_time(
    sees: Predicate | Sequence[Predicate], time: int | None, max_time: int, heads: int, block_size: int
) -> BlocksparseTransformer:
    """from_mask's object for an `attention` with any_time=True on tensors of `time` positions.

    time: any number, or None where it is not known: then any up to max_time, and a function is asked about them all.
    """
    check_positive("heads", heads)
    check_block_size("block_size", block_size)
    check_positive("max_time", max_time)
    predicates = _per_head(sees, heads)
    for predicate in predicates:
        if is_pattern(predicate):
            _check_promises(predicate, time or max_time, time or max_time)
    plans = ladder((), max_time, block_size) if time is None else [whole((), time, block_size)]
    objects = [
        assemble(
            [
                predicate if is_pattern(predicate) else _within(predicate, plan.time)
                for predicate in predicates
            ],
            plan.rows,
            plan.rows,
            heads,
            block_size,
            keys_there=[keys_there(plan.rows, 1, plan.time)],
        )
        for plan in plans
    ]
    return objects[0] if time else objects[-1].among(objects, max_time, looks_ahead=True)


def _within(sees: Callable, time: int) -> Callable:
    """sees, which is asked about no position from `time` on: it may look positions up in an array."""
    return lambda query, key: sees(np.minimum(query, time - 1), np.minimum(key, time - 1))


def assemble(
    predicates: Sequence[Predicate],
    query_time: int,
    key_time: int,
    heads: int,
    block_size: int,
    name: str | None = None,
    keys_there: Sequence[Callable | None] = (None,),
) -> BlocksparseTransformer:
    """The object whose head h has predicates[h % len(predicates)]; arguments checked before, PlannedCallback's."""
    shape = query_time // block_size, key_time // block_size
    callback = PlannedCallback(predicates, block_size, keys_there)
    layouts = callback.layouts(heads, *shape)
    shared = len(layouts) == 1
    layout: object = layouts[0] if shared else layouts
    if len(layouts) * shape[0] * shape[1] <= _LARGEST_LAYOUT:
        dense = np.stack([head.toarray() for head in layouts])
        layout = dense[0] if shared else dense
    return BlocksparseTransformer(layout, block_size, heads, callback, name)


def _check_time(argument: str, time: int, block_size: int) -> None:
    check_positive(argument, time)
    if time % block_size:
        raise ValueError(
            f"{argument}={time} is no multiple of block_size={block_size}; nearest: "
            f"{nearest_multiple(time, block_size)}. Positions to fill up with: keys that nobody sees, queries "
            "that see nothing"
        )


def _per_head(sees, heads: int) -> list[Predicate]:
    """One predicate, or one for each head of a cycle, each checked at every call."""
    given = list(sees) if isinstance(sees, Sequence) else [sees]
    if not given or not all(is_pattern(each) or callable(each) for each in given):
        raise TypeError(
            f"sees is {sees!r}; give a function sees(query, key) of arrays, a Pattern, or a sequence of them, one "
            "a head"
        )
    if len(given) > heads:
        raise ValueError(f"sees has {len(given)} predicates for heads={heads}; give at most one a head")
    if not any(_takes_head(each) for each in given):
        return [_checked(each) for each in given]
    cycled = [given[head % len(given)] for head in range(heads)]
    return [
        _checked(partial(each, head=head) if _takes_head(each) else each) for head, each in enumerate(cycled)
    ]


def _takes_head(predicate: Predicate) -> bool:
    if is_pattern(predicate):
        return False
    try:
        return "head" in inspect.signature(predicate).parameters
    except ValueError:  # some of C have none
        return False


def _checked(predicate: Predicate) -> Predicate:
    if is_pattern(predicate):
        return Pattern(
            _answering(predicate.sees), predicate.shift, predicate.period, predicate.reach, predicate.ahead
        )
    return _answering(predicate)


def _answering(sees: Callable) -> Callable:
    """sees with its answers looked at: a bool array that broadcasts with query and key, or an error in words."""

    def ask(query, key):
        try:
            seen = np.asarray(sees(query, key))
        except ValueError as error:
            if "truth value" not in str(error):
                raise
            raise TypeError(
                "sees was asked about arrays and took one for a truth value; write & | ~ for and, or, not, and "
                "np.where for if"
            ) from error
        if seen.dtype != bool:
            raise TypeError(f"sees returned {seen.dtype}; it has to return booleans, as `key <= query` does")
        wanted = np.broadcast_shapes(query.shape, key.shape)
        try:
            return np.broadcast_to(seen, wanted)
        except ValueError:
            raise ValueError(
                f"sees returned shape {list(seen.shape)} for queries {list(query.shape)} and keys "
                f"{list(key.shape)}; it has to broadcast to {list(wanted)}: one answer for each pair"
            ) from None

    return ask


def _check_promises(pattern: Pattern, query_time: int, key_time: int) -> None:
    """Raises ValueError with a pair at which the pattern does not repeat as it says."""
    generator = np.random.default_rng(0)
    i = generator.integers(query_time, size=_ASKED, dtype=np.int32)
    j = generator.integers(key_time, size=_ASKED, dtype=np.int32)
    close = generator.integers(-pattern.reach - 64, 65, _ASKED // 2).astype(np.int32)
    j[: _ASKED // 2] = np.clip(i[: _ASKED // 2] + close, 0, key_time - 1)
    seen = pattern.sees(i, j)
    shift = min(pattern.shift, NO_SHIFT)
    moved = i + np.int64(shift), j + np.int64(shift)
    exists = (moved[0] < query_time) & (moved[1] < key_time)
    _compare("shift", pattern.shift, pattern, (i, j, seen), moved, exists)
    earlier = i, j - pattern.period
    _compare(
        "period", pattern.period, pattern, (i, j, seen), earlier, (i - j >= pattern.reach) & (earlier[1] >= 0)
    )
    if pattern.ahead is not None and (bad := np.flatnonzero(seen & (j - i > pattern.ahead))).size:
        at = bad[0]
        raise ValueError(
            f"sees promises ahead={pattern.ahead}, but query {i[at]} sees key {j[at]}; give a larger ahead, or None"
        )


def _compare(promise: str, value: int, pattern: Pattern, asked, again, exists) -> None:
    i, j, seen = (x[exists] for x in asked)
    other = [x[exists] for x in again]
    if len(i) and (bad := np.flatnonzero(seen != pattern.sees(*other))).size:
        at = bad[0]
        raise ValueError(
            f"sees promises {promise}={value}"
            + (f" beyond reach={pattern.reach}" if promise == "period" else "")
            + f", but differs between (query, key) = ({i[at]}, {j[at]}) and ({other[0][at]}, {other[1][at]}); "
            "give what repeats, or the function without a Pattern, which promises nothing"
        )
