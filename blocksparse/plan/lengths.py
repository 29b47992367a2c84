"""Plans of whole blocks for contexts of any length: how long such a plan is, and which rows of it exist."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from .checks import BLOCK_SIZES
from .modes import TABLE, Mode

_SPARE = 1.25  # so many times the rows that exist may a plan in the order of residues have, before blocks get smaller


class Whole(NamedTuple):
    """The plan that holds `time` positions: so many rows in blocks of block_size.

    sorted: `strided` lies in the order (i % stride, i // stride), a pass of its own.
    """

    time: int
    rows: int
    block_size: int
    sorted: bool


def whole(modes: Sequence[Mode], time: int, blocksize: int) -> Whole:
    """The plan for `time` positions in blocks of at most blocksize."""
    strides = {mode.local_attn_ctx for mode in modes if any(TABLE[part].by_residue for part in mode.parts)}
    for stride in strides:  # all modes have one local_attn_ctx
        found = _by_residue(stride, time, blocksize)
        run = found.rows // stride
        # Short contexts have classes of a few rows, each filled up to a block: more pairs than in the natural order.
        if found.rows == time or 2 * found.rows * run < time * time:
            return found
    return whole_blocks(time, blocksize)


def whole_blocks(time: int, blocksize: int) -> Whole:
    """In the natural order of positions."""
    return Whole(time, -(-time // blocksize) * blocksize, blocksize, sorted=False)


def _by_residue(stride: int, time: int, blocksize: int) -> Whole:
    """Every residue class in whole blocks: of blocksize, or where that adds too many rows, of a smaller size."""
    sizes = [size for size in BLOCK_SIZES if size <= blocksize]
    longest = -(-time // stride)
    found = [Whole(time, -(-longest // size) * size * stride, size, sorted=True) for size in reversed(sizes)]
    return next((each for each in found if each.rows <= _SPARE * time), found[-1])


def keys_there(rows: int, order: int, time: int) -> Callable | None:
    """Which rows of a plan, in that order, are positions below `time`; None where all are.

    order: s, so that row r is position (r % (rows / s)) * s + r // (rows / s), as BlocksparseTransformer.attention
        takes it.
    """
    if rows == time:
        return None
    run = rows // order
    return lambda row: row % run * order + row // run < time


def ladder(modes: Sequence[Mode], largest: int, blocksize: int) -> list[Whole]:
    """Plans for contexts of every length up to `largest`, ascending: one has at most about twice the rows it needs."""
    last = whole(modes, largest, blocksize)
    found, time = [], blocksize
    while time < largest:
        each = (
            _by_residue(modes[0].local_attn_ctx, time, blocksize)
            if last.sorted
            else whole_blocks(time, blocksize)
        )
        found.append(each._replace(time=each.rows))
        time = 2 * each.rows
    return [*(each for each in found if each.rows < last.rows), last]
