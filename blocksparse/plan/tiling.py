"""How one side of a plan is cut into row tiles and packed into column tiles (NumPy only).

Everything is counted in granules, blocks cut down to what divides both sides of the tile where they are larger. A strip
is one granule of columns of one row tile: the blocks of its rows, one a slot. A column tile is `lanes` strips side by
side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .blocks import Blocks, HeadBlocks

_EMPTY = -1  # the block or strip that nobody sees
_MASKS_AT_ONCE = 1 << 26  # booleans expanded at once while bit masks are packed


@dataclass(frozen=True, eq=False)
class TilePlan:
    """For each row tile of one side the column tiles to visit, a head's heaviest row tiles first."""

    row_tile: int  # M
    column_tile: int  # N
    granule: int  # g, the unit that rows and columns are gathered in
    head_tiles: np.ndarray  # int32 [distinct + 1] head p's row tiles are head_tiles[p] .. head_tiles[p + 1]
    rows: np.ndarray  # int32 [tiles, M / g] row granules, in plan order; a short tile repeats its first
    row_count: np.ndarray  # int32 [tiles] rows in the tile, 1 .. M; what lies past them is not stored
    offset: np.ndarray  # int32 [tiles + 1] row tile t visits column tiles offset[t] .. offset[t + 1]
    full: np.ndarray  # int32 [tiles] the first full[t] of them need no mask
    columns: np.ndarray  # int32 [column_tiles, N / g] granules; a short tile repeats its first, masked off
    mask: np.ndarray  # int32 [column_tiles] row of masks (0 where full)
    masks: np.ndarray  # uint32 [masks, M, ceil(N / 32)] bit c % 32 of word [r, c / 32]: r sees c


def plan_side(
    heads: list[HeadBlocks],
    masks: np.ndarray,
    rows: int,
    columns: int,
    row_tile: int,
    column_tile: int,
    members: int = 1,
) -> TilePlan:
    """Plan the side whose rows are the `query` of `heads`: rows x columns blocks, cut into tiles of M x N.

    members: so many heads' columns stand one behind the other, `columns` blocks each.
    """
    entries, masks, parts = _cut(heads, masks, math.gcd(row_tile, column_tile))
    granule = masks.shape[1]
    slots, lanes = row_tile // granule, column_tile // granule
    columns *= parts
    places = [_arrange(*entry[:2], rows * parts, columns, members, slots, lanes) for entry in entries]
    tiles = _RowTiles.of(places, slots)
    strips = _strips(entries, tiles, columns * members)
    order = _pack_columns(strips, tiles, lanes)
    gathered = _filled(np.full((order.total, lanes), _EMPTY), order.lane, strips.column)
    masked = np.ones(order.total, bool)
    masked[order.lane[order.unmasked] // lanes] = False
    kinds, kind = _distinct_rows(strips.blocks)
    pattern_of = _filled(np.full((order.total, lanes), _EMPTY), order.lane, kind)
    patterns, pattern = _distinct_rows(pattern_of[masked])
    mask = np.zeros(order.total, np.int64)
    mask[masked] = pattern
    arrays = dict(
        head_tiles=tiles.head_tiles,
        rows=_repeat_first(tiles.rows[order.heaviest]),
        row_count=tiles.count[order.heaviest] * granule,
        offset=order.offset,
        full=order.full[order.heaviest],
        columns=_repeat_first(gathered),
        mask=mask,
    )
    words = {name: array.astype(np.int32) for name, array in arrays.items()}
    bits = _pack_masks(patterns, kinds, masks, row_tile, column_tile)
    return TilePlan(row_tile, column_tile, granule, masks=bits, **words)


def scatter(blocks: Blocks, large: int = 128, small: int = 64) -> float:
    """How much more is visited in tiles of `large` rows than in tiles of `small`: 1 where neighbours see the same
    columns, large / small where they see different ones. A tile visits the columns of all its rows for each of them.
    """
    shown = np.any(blocks.masks, axis=(1, 2))
    visited = {small: 0, large: 0}
    for head, count in zip(
        blocks.heads, np.bincount(blocks.head_index, minlength=len(blocks.heads)), strict=True
    ):
        seen = np.take(shown, head.mask)
        query, key = head.query[seen], head.key[seen]
        for size in visited:
            together = max(1, size // blocks.block_size)
            pairs, _ = _compact(query // together * np.int64(blocks.key_blocks) + key)
            visited[size] += int(count) * len(pairs) * together
    return visited[large] / visited[small] if visited[small] else 1.0


class _Entries(NamedTuple):
    """A head's blocks that anybody sees."""

    row: np.ndarray
    column: np.ndarray
    mask: np.ndarray


def _cut(heads: list[HeadBlocks], masks: np.ndarray, largest: int) -> tuple[list[_Entries], np.ndarray, int]:
    """(entries of each head, masks, parts of a block's side), with blocks of at most `largest`."""
    size = masks.shape[1]
    parts = max(1, size // largest)
    size //= parts
    pieces = masks.reshape(-1, parts, size, parts, size).swapaxes(2, 3).reshape(-1, size * size)
    kinds, number = np.unique(np.packbits(pieces, axis=1), axis=0, return_inverse=True)
    kinds = np.unpackbits(kinds, axis=1).astype(bool)
    # Mask number 0 has to be the one that sees everything, as in Blocks.masks: _pack_columns looks for it.
    order = np.argsort(~kinds.all(1), kind="stable")
    number = np.argsort(order)[number].reshape(-1, parts * parts)
    seen: np.ndarray = np.any(kinds[order], axis=1)
    y, x = np.divmod(np.arange(parts * parts), parts)
    entries = []
    for head in heads:
        mask = number[head.mask]
        keep = seen[mask]
        row, column = (head.query[:, None] * parts + y)[keep], (head.key[:, None] * parts + x)[keep]
        entries.append(_Entries(row, column, mask[keep]))
    return entries, kinds[order].reshape(-1, size, size), parts


def _arrange(
    row: np.ndarray, column: np.ndarray, rows: int, columns: int, members: int, slots: int, lanes: int
) -> tuple[int, np.ndarray]:
    """(rows in a tile, place of each row) that visit the fewest column tiles; a row tile itself counts as half of one.

    Rows stay in order, or the few heavy ones (summary columns that every later query sees) come first, side
    by side: a tile with one heavy row visits that row's columns for all its rows. Rows that are heavy for one of the
    `members` whose columns these are do not stand with those that are heavy for another.
    """
    count = np.bincount(row * members + column // columns, minlength=rows * members).reshape(rows, members)
    places = [np.arange(rows)]
    heavy = count > 4 * np.median(count, axis=0)
    if heavy.any():
        first = np.where(heavy.any(1), heavy.argmax(1), members)
        places.append(np.argsort(np.argsort(first, kind="stable")))
    # A height of at most slots / 2 cannot win: two such tiles fit in one, which visits a column that both see once.
    heights = range(min(slots, rows), min(slots, rows) // 2, -1)
    choices = [(height, place) for place in places for height in heights]
    if len(choices) == 1:
        return choices[0]

    def work(choice: tuple[int, np.ndarray]) -> int:
        height, place = choice
        pairs = np.sort(place[row] // height * np.int64(columns * members) + column)
        widths = np.bincount(pairs[_starts(pairs)] // (columns * members))
        return 2 * int((-(-widths // lanes)).sum()) + -(-rows // height)

    return min(choices, key=work)


@dataclass(frozen=True, eq=False)
class _RowTiles:
    """The row tiles of all heads, head after head."""

    head_tiles: np.ndarray  # [heads + 1]
    tile: np.ndarray  # [heads, rows] the tile of each row
    slot: np.ndarray  # [heads, rows] and its slot in there
    rows: np.ndarray  # [tiles, slots] the row in each slot, or _EMPTY
    count: np.ndarray  # [tiles] rows in each tile

    @classmethod
    def of(cls, places: list[tuple[int, np.ndarray]], slots: int) -> _RowTiles:
        tile = np.stack([place // height for height, place in places])
        slot = np.stack([place % height for height, place in places])
        head_tiles = np.cumsum([0, *(tile.max(1) + 1)])
        tile += head_tiles[:-1, None]
        rows = np.full((head_tiles[-1], slots), _EMPTY)
        rows[tile, slot] = np.arange(tile.shape[1])
        return cls(head_tiles, tile, slot, rows, (rows != _EMPTY).sum(1))


class _Strips(NamedTuple):
    """All strips, sorted by (tile, column)."""

    tile: np.ndarray  # [strips]
    column: np.ndarray  # [strips]
    blocks: np.ndarray  # [strips, slots] the mask of each of its blocks, or _EMPTY


def _strips(entries: list[_Entries], tiles: _RowTiles, columns: int) -> _Strips:
    tile = np.concatenate([tiles.tile[head, entry.row] for head, entry in enumerate(entries)])
    slot = np.concatenate([tiles.slot[head, entry.row] for head, entry in enumerate(entries)])
    column = np.concatenate([entry.column for entry in entries])
    code, strip = _compact(tile * np.int64(columns) + column)
    blocks = np.full((len(code), tiles.rows.shape[1]), _EMPTY, np.int32)
    blocks[strip, slot] = np.concatenate([entry.mask for entry in entries])
    return _Strips(code // columns, code % columns, blocks)


@dataclass(frozen=True, eq=False)
class _Order:
    """Where the strips go. Row tiles are numbered by `heaviest`: the tile at each place."""

    heaviest: np.ndarray  # [tiles] a head's heaviest tile first
    offset: np.ndarray  # [tiles + 1] column tiles, in that order
    full: np.ndarray  # [tiles] unmasked column tiles of each row tile, in its own order
    unmasked: np.ndarray  # bool [strips]
    lane: np.ndarray  # [strips] column tile * lanes + lane

    @property
    def total(self) -> int:
        return int(self.offset[-1])


def _pack_columns(strips: _Strips, tiles: _RowTiles, lanes: int) -> _Order:
    """In a row tile, the strips that all its rows see whole fill what tiles they can; then the rest."""
    tile, count = strips.tile, len(tiles.count)
    whole = (strips.blocks == 0).sum(1) == tiles.count[tile]
    full = np.bincount(tile[whole], minlength=count) // lanes
    unmasked = whole & (_rank(tile, whole, count) < full[tile] * lanes)
    rest = np.bincount(tile[~unmasked], minlength=count)
    weight = full + -(-rest // lanes)
    head = np.repeat(np.arange(len(tiles.head_tiles) - 1), np.diff(tiles.head_tiles))
    heaviest = np.lexsort((-weight, head))
    offset = np.concatenate([[0], np.cumsum(weight[heaviest])])
    first = np.empty(count, np.int64)
    first[heaviest] = offset[:-1]
    rank = np.where(unmasked, _rank(tile, unmasked, count), _rank(tile, ~unmasked, count))
    lane = (first[tile] + np.where(unmasked, 0, full[tile])) * lanes + rank
    return _Order(heaviest, offset, full, unmasked, lane)


def _rank(tile: np.ndarray, chosen: np.ndarray, tiles: int) -> np.ndarray:
    """Among the chosen strips of its row tile, the place of each."""
    count = np.bincount(tile[chosen], minlength=tiles)
    return np.cumsum(chosen) - chosen - (np.cumsum(count) - count)[tile]


def _filled(table: np.ndarray, place: np.ndarray, value: np.ndarray) -> np.ndarray:
    table.reshape(-1)[place] = value
    return table


def _repeat_first(table: np.ndarray) -> np.ndarray:
    return np.where(table == _EMPTY, table[:, :1], table)


def _starts(ranked: np.ndarray) -> np.ndarray:
    """True where a sorted array takes a new value."""
    new = np.ones(len(ranked), bool)
    np.not_equal(ranked[1:], ranked[:-1], out=new[1:])
    return new


def _compact(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """np.unique with return_inverse, for non-negative integers; without a sort where their range is small."""
    largest = int(values.max(initial=0))
    if largest < 2 * len(values):
        present = np.zeros(largest + 1, bool)
        present[values] = True
        return np.flatnonzero(present), (np.cumsum(present) - 1)[values]
    order = np.argsort(values, kind="stable")
    ranked = values[order]
    new = _starts(ranked)
    inverse = np.empty(len(values), np.int64)
    inverse[order] = np.cumsum(new) - 1
    return ranked[new], inverse


def _distinct_rows(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rows of a table of integers from -1 on, and the number of each row among them."""
    number = np.zeros(len(table), np.int64)
    base = int(table.max(initial=_EMPTY)) + 2
    for column in table.T:  # renumbering after each column keeps number * base inside 64 bits
        number = _compact(number * base + column + 1)[1]
    first = np.zeros(number.max(initial=-1) + 1, np.int64)
    first[number[::-1]] = np.arange(len(table))[::-1]
    return table[first], number


def _pack_masks(
    patterns: np.ndarray, strips: np.ndarray, masks: np.ndarray, row_tile: int, column_tile: int
) -> np.ndarray:
    """Bit masks of column tiles: `patterns` lists the strips of each, `strips` the blocks of each strip."""
    masks = np.concatenate(
        [masks, np.zeros_like(masks[:1])]
    )  # the last one, which the index _EMPTY = -1 names
    strips = np.concatenate([strips, np.full_like(strips, _EMPTY, shape=(1, strips.shape[1]))])
    packed = np.zeros((len(patterns), row_tile, max(32, column_tile) // 8), np.uint8)
    step = max(1, _MASKS_AT_ONCE // (row_tile * column_tile))
    for start in range(0, len(patterns), step):
        blocks = strips[patterns[start : start + step]]  # [n, lanes, slots]
        bits = masks[blocks].transpose(0, 2, 3, 1, 4).reshape(len(blocks), row_tile, column_tile)
        packed[start : start + step, :, : column_tile // 8] = np.packbits(bits, axis=-1, bitorder="little")
    return packed.view(np.uint32)
