"""Where decoding keeps the keys of each mode: slots that a query finds side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Cache:
    """Where decoding keeps the keys of a mode: `runs` times `length` slots a head; a query reads one run whole.

    slot(j): place of position j in the cache, the same for all heads.
    holds(n): positions [capacity, heads or 1] in the slots once the first n positions went in; others where they are
        negative or not below n.
    run(i), within(i): the run that query i reads, and the positions [..., length, heads or 1] in it; where there is one
        run, it holds what came last.
    keeps(j): whether the cache takes key j; by default where j's own query sees it, as nobody sees it otherwise.
    """

    length: int
    slot: Callable
    holds: Callable
    runs: int = 1
    run: Callable = lambda i: i * 0
    within: Callable | None = None
    keeps: Callable | None = None

    @property
    def capacity(self) -> int:
        return self.runs * self.length

    def reach(self, i):
        """The positions in the run that query i reads; those it does not see are among them."""
        return self.holds(i + 1) if self.within is None else self.within(i)


def _slots(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.int32)[:, None]


def everything(mode: Any, n_ctx: int) -> Cache:
    slots = _slots(n_ctx)
    return Cache(n_ctx, lambda j: j, lambda n: slots)


def _last(slots: np.ndarray, size: int) -> Callable:
    """n -> the newest of the first n positions in each slot of a ring, where a position takes an old one's place."""
    return lambda n: n - 1 - (n - 1 - slots) % size


def _ring(size: int) -> Cache:
    return Cache(size, lambda j: j % size, _last(_slots(size), size))


def _bounded(mode: Any, n_ctx: int) -> int:
    """local_attn_ctx, as far as there are positions: a longer window, chunk or stride shows the same."""
    return min(mode.local_attn_ctx, n_ctx)


def window(mode: Any, n_ctx: int) -> Cache:
    return _ring(_bounded(mode, n_ctx))


def every_class(mode: Any, n_ctx: int) -> Cache:
    """Every key is reached again, but a query reaches only its residue class: one run."""
    stride = _bounded(mode, n_ctx)
    length = -(-n_ctx // stride)
    slots, back = _slots(stride * length), stride * _slots(length)
    return Cache(
        length,
        lambda j: j % stride * length + j // stride,
        lambda n: slots % length * stride + slots // length,
        stride,
        lambda i: i % stride,
        lambda i: i % stride + back,
    )


def one_chunk(mode: Any, n_ctx: int) -> Cache:
    return _ring(_bounded(mode, n_ctx))


def two_chunks(mode: Any, n_ctx: int) -> Cache:
    """The chunk that is read, and the one that is filled meanwhile."""
    length = _bounded(mode, n_ctx)
    inside = _slots(length)
    return Cache(
        length,
        lambda j: j % (2 * length),
        _last(_slots(2 * length), 2 * length),
        2,
        lambda i: (i // length + 1) % 2,
        lambda i: (i // length - 1) * length + inside,
        lambda j: j >= 0,
    )


def columns(mode: Any, n_ctx: int) -> Cache:
    """The summary columns of every chunk side by side; each head has its own.

    Groups of columns are counted from a chunk's end, so column c of every group lies at a multiple of their width from
    there: one slot for all heads.
    """
    length, first = mode.local_attn_ctx, mode.first
    width = int(np.max(mode.last - first))
    slots = _slots(-(-n_ctx // length) * width)
    positions = (slots // width * length + first + slots % width).astype(np.int32)
    return Cache(
        slots.size,
        lambda j: j // length * width + (j % length - length) % width,
        lambda n: positions,
    )
