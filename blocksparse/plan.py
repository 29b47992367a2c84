"""The tile plan the kernels follow: block lists and masks in, gathered and masked tiles out (NumPy only).

A row tile is a run of at most M rows. The columns its rows see are packed side by side into column tiles of N, in units
of a granule. Column tiles that every row sees whole come first and need no mask; the others name an M x N bit mask.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields

import numpy as np

from .layout import Blocks

TILES = (16, 32, 64, 128)
_MAGIC, _VERSION, _HEADER = 0x42535031, 1, 64
_EMPTY = -1  # number of the strip or block that nobody sees
_MASKS_AT_ONCE = 1 << 26  # booleans expanded at once while the bit masks are packed


@dataclass(frozen=True, eq=False)
class TilePlan:
    """For each row tile of one side, the column tiles of the other side to visit, heaviest row tiles of a head first."""

    row_tile: int  # M
    column_tile: int  # N
    granule: int  # g, the gather unit
    head_tiles: (
        np.ndarray
    )  # int32 [distinct + 1] row tiles of distinct head p are head_tiles[p] .. head_tiles[p + 1]
    rows: np.ndarray  # int32 [tiles, M / g] row granules, in plan order; a short tile repeats its first
    row_count: np.ndarray  # int32 [tiles] rows in the tile, 1 .. M; what lies past them is not stored
    offset: np.ndarray  # int32 [tiles + 1] column tiles of row tile t are offset[t] .. offset[t + 1]
    full: np.ndarray  # int32 [tiles] the first full[t] of them need no mask
    columns: (
        np.ndarray
    )  # int32 [column_tiles, N / g] granule numbers; a short tile repeats its first, masked off
    mask: np.ndarray  # int32 [column_tiles] row of masks (0 where full)
    masks: (
        np.ndarray
    )  # uint32 [distinct masks, M, ceil(N / 32)] bit c % 32 of word [r, c / 32]: row r sees column c


@dataclass(frozen=True, eq=False)
class Plan:
    """Both sides of an attention: by_query drives the output and dq, by_key drives dk and dv."""

    query_time: int
    key_time: int
    head_index: np.ndarray  # int32 [heads] distinct head of head h
    order: np.ndarray  # int32 [heads] s: plan row r is tensor row (r % (n / s)) * s + r // (n / s)
    by_query: TilePlan  # rows are queries, columns are keys
    by_key: TilePlan  # rows are keys, columns are queries

    def pack(self) -> np.ndarray:
        """The plan as one int32 vector: 64 words of header, then every array at a multiple of 16 bytes."""
        arrays = [self.head_index, self.order, *_arrays(self.by_query), *_arrays(self.by_key)]
        words = [np.ascontiguousarray(array).reshape(-1).view(np.int32) for array in arrays]
        starts, total = [], _HEADER
        for array in words:
            starts.append(total)
            total += -(-len(array) // 4) * 4
        blob = np.zeros(total, np.int32)
        for start, array in zip(starts, words, strict=True):
            blob[start : start + len(array)] = array
        distinct = len(self.by_query.head_tiles) - 1
        blob[[0, 1, 6, 7, 8, 9, 10]] = (
            _MAGIC, _VERSION, total, self.query_time, self.key_time, len(self.head_index), distinct,
        )  # fmt: skip
        blob[16:24], blob[32:40] = _record(self.by_query), _record(self.by_key)
        blob[_OFFSETS] = starts
        blob[2:6] = np.frombuffer(hashlib.blake2b(blob[6:].tobytes(), digest_size=16).digest(), np.int32)
        return blob


_OFFSETS = [48, 49, *range(50, 58), *range(58, 64), 11, 12]  # header words that hold where each array starts


def _arrays(side: TilePlan) -> list[np.ndarray]:
    return [getattr(side, field.name) for field in fields(TilePlan)[3:]]


def _record(side: TilePlan) -> list[int]:
    most_rows = np.diff(side.head_tiles).max(initial=0)
    most_columns = np.diff(side.offset).max(initial=0)
    return [
        side.row_tile, side.column_tile, side.granule, len(side.rows),
        len(side.columns), len(side.masks), most_rows, most_columns,
    ]  # fmt: skip


def unpack(blob: np.ndarray) -> Plan:
    """The inverse of Plan.pack. Raises ValueError that names the first field out of range."""
    blob = np.asarray(blob)
    _require(blob.dtype == np.int32 and blob.ndim == 1 and len(blob) >= _HEADER, "blob", "int32 [64 or more]")
    _require(blob[0] == _MAGIC and blob[1] == _VERSION, "magic, version", f"{_MAGIC:#x}, {_VERSION}")
    _require(blob[6] == len(blob), "length", f"{len(blob)}, the blob's own")
    digest = np.frombuffer(hashlib.blake2b(blob[6:].tobytes(), digest_size=16).digest(), np.int32)
    _require(np.array_equal(blob[2:6], digest), "hash", "the content's")
    query_time, key_time, heads, distinct = (int(word) for word in blob[7:11])
    starts = dict(zip(_OFFSETS, (int(blob[word]) for word in _OFFSETS), strict=True))

    def take(word: int, *shape: int) -> np.ndarray:
        start, size = starts[word], int(np.prod(shape))
        _require(
            _HEADER <= start and start % 4 == 0 and start + size <= len(blob),
            f"offset [{word}]",
            "in the blob",
        )
        return blob[start : start + size].reshape(shape)

    def side(record: int, words: list[int]) -> TilePlan:
        row_tile, column_tile, granule, tiles, column_tiles, distinct_masks = (
            int(w) for w in blob[record : record + 6]
        )
        _require(row_tile in TILES and column_tile in TILES, "tile sizes", f"in {TILES}")
        _require(
            granule > 0 and row_tile % granule == column_tile % granule == 0,
            "granule",
            "a divisor of both tiles",
        )
        shapes = [
            (distinct + 1,), (tiles, row_tile // granule), (tiles,), (tiles + 1,), (tiles,),
            (column_tiles, column_tile // granule), (column_tiles,), (distinct_masks, row_tile, _words(column_tile)),
        ]  # fmt: skip
        arrays = [take(word, *shape) for word, shape in zip(words, shapes, strict=True)]
        return TilePlan(row_tile, column_tile, granule, *arrays[:-1], arrays[-1].view(np.uint32))

    by_query, by_key = side(16, _OFFSETS[2:10]), side(32, _OFFSETS[10:])
    plan = Plan(query_time, key_time, take(48, heads), take(49, heads), by_query, by_key)
    check_order(plan.order, query_time, key_time, max(by_query.granule, by_key.granule))
    _require(
        np.all((plan.head_index >= 0) & (plan.head_index < distinct)), "head_index", f"0 to {distinct - 1}"
    )
    _check_side("by_query", by_query, query_time, key_time)
    _check_side("by_key", by_key, key_time, query_time)
    return plan


def _check_side(name: str, side: TilePlan, rows: int, columns: int) -> None:
    tiles, column_tiles, count = len(side.rows), len(side.columns), np.diff(side.offset)
    for field, start, stop in (("head_tiles", side.head_tiles, tiles), ("offset", side.offset, column_tiles)):
        rises = start[0] == 0 and start[-1] == stop and np.all(np.diff(start) >= 0)
        _require(rises, f"{name}.{field}", f"rising from 0 to {stop}")
    _require(
        np.all((side.full >= 0) & (side.full <= count)), f"{name}.full", "at most the row tile's column tiles"
    )
    in_tile = (side.row_count >= 1) & (side.row_count <= side.row_tile)
    _require(np.all(in_tile), f"{name}.row_count", f"1 to {side.row_tile}")
    last = rows // side.granule
    _require(np.all((side.rows >= 0) & (side.rows < last)), f"{name}.rows", f"0 to {last - 1}")
    last = columns // side.granule
    _require(np.all((side.columns >= 0) & (side.columns < last)), f"{name}.columns", f"0 to {last - 1}")
    masked = np.arange(column_tiles) - np.repeat(side.offset[:-1], count) >= np.repeat(side.full, count)
    in_table = (side.mask >= 0) & (side.mask < np.where(masked, len(side.masks), 1))
    _require(np.all(in_table), f"{name}.mask", f"0 where full, 0 to {len(side.masks) - 1} elsewhere")


def _require(holds: bool, field: str, wanted: str) -> None:
    if not holds:
        raise ValueError(f"the plan is damaged: {field} has to be {wanted}")


def _words(column_tile: int) -> int:
    return -(-column_tile // 32)


def make_plan(
    blocks: Blocks,
    order: int | list[int] | np.ndarray = 1,
    heads: int | None = None,
    tiles_by_query: tuple[int, int] = (64, 64),
    tiles_by_key: tuple[int, int] = (64, 64),
) -> Plan:
    """Plan an attention over `blocks` in row tiles of M and column tiles of N.

    order: s, one number or one a head: row r of the layout is row (r % (n / s)) * s + r // (n / s) of the tensor, so
        that s = stride puts the rows of one residue class side by side.
    heads: how many heads there are, when `blocks` describes one for all.
    tiles_by_query, tiles_by_key: (M, N) of each side, out of 16, 32, 64, 128.
    Raises ValueError for an order that does not divide both times into whole blocks, or a tile size not offered.
    """
    for name, tiles in (("tiles_by_query", tiles_by_query), ("tiles_by_key", tiles_by_key)):
        if len(tiles) != 2 or not set(tiles) <= set(TILES):
            raise ValueError(f"{name}={tiles}; it has to be two of {TILES}")
    head_index = np.broadcast_to(blocks.head_index, heads or len(blocks.head_index))
    order = np.broadcast_to(np.asarray(order, np.int32), head_index.shape)
    check_order(order, blocks.query_time, blocks.key_time, blocks.block_size)
    lists = [(head.query, head.key, head.mask) for head in blocks.heads]
    by_query = _plan_side(blocks.query_blocks, blocks.key_blocks, lists, blocks.masks, *tiles_by_query)
    lists = [(head.key, head.query, head.mask) for head in blocks.heads]
    transposed = blocks.masks.transpose(0, 2, 1)
    by_key = _plan_side(blocks.key_blocks, blocks.query_blocks, lists, transposed, *tiles_by_key)
    return Plan(blocks.query_time, blocks.key_time, head_index, order, by_query, by_key)


def check_order(order: np.ndarray, query_time: int, key_time: int, unit: int) -> None:
    """Raise ValueError unless each residue class of each side, time / order rows, is whole units."""
    for stride in np.unique(order).tolist():
        if stride < 1 or (stride > 1 and (query_time % (stride * unit) or key_time % (stride * unit))):
            raise ValueError(
                f"order={stride} has to divide query time {query_time} and key time {key_time} into residue classes of a "
                f"multiple of {unit} rows"
            )


def _plan_side(
    rows: int, columns: int, lists, masks: np.ndarray, row_tile: int, column_tile: int
) -> TilePlan:
    """Plan one side. rows, columns: numbers of blocks. lists: (row, column, mask) of each distinct head's blocks."""
    heads, masks, split = _split([_visible(head, masks) for head in lists], masks, min(row_tile, column_tile))
    rows, columns, granule = rows * split, columns * split, masks.shape[1]
    lanes = column_tile // granule
    arranged = [_arrange(row, column, rows, columns, row_tile // granule, lanes) for row, column, _ in heads]
    runs = [run for run, _ in arranged]
    heads = [
        (place[row], column, mask) for (row, column, mask), (_, place) in zip(heads, arranged, strict=True)
    ]
    tiles = [-(-rows // run) for run in runs]
    head_tiles = np.cumsum([0, *tiles])
    start = np.concatenate([np.arange(0, rows, run) for run in runs])
    count = np.minimum(np.repeat(runs, tiles), rows - start)

    # A strip is one granule of columns of one row tile: the blocks of its rows, one a slot.
    tile = np.concatenate(
        [row // run + base for (row, _, _), run, base in zip(heads, runs, head_tiles[:-1], strict=True)]
    )
    slot = np.concatenate([row % run for (row, _, _), run in zip(heads, runs, strict=True)])
    column = np.concatenate([column for _, column, _ in heads])
    code, strip_of = _compact(tile.astype(np.int64) * columns + column)
    tile, column = code // columns, (code % columns).astype(np.int32)
    slots = np.full((len(code), row_tile // granule), _EMPTY, np.int32)
    slots[strip_of, slot] = np.concatenate([mask for _, _, mask in heads])
    whole = (slots == 0).sum(1) == count[tile]
    strips, strip = _distinct_rows(slots)

    # In each row tile: whole strips fill as many tiles as they can, then the rest in ascending order.
    all_tiles = len(start)
    full = np.bincount(tile[whole], minlength=all_tiles) // lanes
    unmasked = whole & (_rank(tile, whole, all_tiles) < full[tile] * lanes)
    rest = np.bincount(tile[~unmasked], minlength=all_tiles)
    weight = full + -(-rest // lanes)
    heaviest = np.lexsort((-weight, np.repeat(np.arange(len(runs)), tiles)))
    offset = np.cumsum([0, *weight[heaviest]])
    first = np.empty(all_tiles, np.int64)
    first[heaviest] = offset[:-1]
    lane = np.where(unmasked, _rank(tile, unmasked, all_tiles), _rank(tile, ~unmasked, all_tiles))
    place = (first[tile] + np.where(unmasked, 0, full[tile])) * lanes + lane

    gathered = np.full(offset[-1] * lanes, _EMPTY, np.int32)
    gathered[place] = column
    gathered = gathered.reshape(-1, lanes)
    gathered = np.where(gathered == _EMPTY, gathered[:, :1], gathered)
    pattern = np.full(offset[-1] * lanes, _EMPTY, np.int32)
    pattern[place] = strip
    masked = np.ones(offset[-1], bool)
    masked[place[unmasked] // lanes] = False
    patterns, number = _distinct_rows(pattern.reshape(-1, lanes)[masked])
    mask = np.zeros(offset[-1], np.int32)
    mask[masked] = number
    bits = _pack_masks(patterns, strips, masks, row_tile, column_tile)
    slot = np.arange(row_tile // granule)
    slot = start[heaviest, None] + np.where(slot < count[heaviest, None], slot, 0)
    at = np.stack([np.argsort(place) for _, place in arranged])  # the row granule at each place
    listed = at[np.repeat(np.arange(len(runs)), tiles)[:, None], slot]
    arrays = (
        head_tiles,
        listed,
        count[heaviest] * granule,
        offset,
        full[heaviest],
        gathered,
        mask,
    )
    return TilePlan(row_tile, column_tile, granule, *(array.astype(np.int32) for array in arrays), bits)


def _visible(head, masks: np.ndarray):
    """The blocks of a head that anybody sees."""
    row, column, mask = head
    keep = masks.any((1, 2))[mask]
    return row[keep], column[keep], mask[keep]


def _split(heads, masks: np.ndarray, largest: int):
    """Blocks no larger than `largest`: (heads, masks, parts a side was cut into)."""
    size = masks.shape[1]
    if size <= largest:
        return heads, masks, 1
    parts = size // largest
    pieces = masks.reshape(-1, parts, largest, parts, largest).swapaxes(2, 3).reshape(-1, largest, largest)
    bits, number = np.unique(
        np.packbits(pieces.reshape(len(pieces), -1), axis=1), axis=0, return_inverse=True
    )
    kinds = np.unpackbits(bits, axis=1).astype(bool).reshape(-1, largest, largest)
    kinds = np.concatenate(
        [np.ones((1, largest, largest), bool), kinds]
    )  # keeps number 0 for "sees everything"
    number = np.where(kinds[1:].all((1, 2))[number], 0, number + 1).reshape(-1, parts, parts)
    y, x = np.divmod(np.arange(parts * parts), parts)
    cut = []
    for row, column, mask in heads:
        finer = row[:, None] * parts + y, column[:, None] * parts + x, number[mask].reshape(-1, parts * parts)
        cut.append(_visible([part.reshape(-1) for part in finer], kinds))
    return cut, kinds, parts


def _arrange(row, column, rows: int, columns: int, most: int, lanes: int) -> tuple[int, np.ndarray]:
    """(height of the row tiles, place of each row among them), in granules, that visit the fewest column tiles.

    Rows stay in order, or the few heavy ones (summary columns that every later query sees) come first, side by side: a
    tile with one heavy row visits that row's columns for all its rows.
    """
    count = np.bincount(row, minlength=rows)
    places = [np.arange(rows)]
    heavy = count > 4 * np.median(count)
    if heavy.any():
        places.append(np.argsort(np.argsort(~heavy, kind="stable")))
    # Only heights above most / 2 can win: two runs of a lower one fit in a tile and share their columns.
    heights = range(min(most, rows), min(most, rows) // 2, -1)
    choices = [(height, place) for place in places for height in heights]
    if len(choices) == 1:
        return choices[0]
    return min(
        choices,
        key=lambda choice: _visits(choice[1][row] // choice[0], column, columns, lanes) + rows / choice[0],
    )


def _visits(tile: np.ndarray, column: np.ndarray, columns: int, lanes: int) -> int:
    """Column tiles that these blocks make their row tiles visit."""
    pairs = np.sort(tile * np.int64(columns) + column)
    return int((-(-np.bincount(pairs[_starts(pairs)] // columns) // lanes)).sum())


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
    """The distinct rows of an integer table with entries from -1, and the number of each row among them."""
    number = np.zeros(len(table), np.int64)
    base = int(table.max(initial=_EMPTY)) + 2
    for column in table.T:  # number stays below the number of rows, so the code fits in 64 bits
        number = _compact(number * base + column + 1)[1]
    first = np.zeros(number.max(initial=-1) + 1, np.int64)
    first[number[::-1]] = np.arange(len(table))[::-1]
    return table[first], number


def _rank(tile: np.ndarray, chosen: np.ndarray, tiles: int) -> np.ndarray:
    """Among the chosen strips of its row tile, the place of each (strips are sorted by row tile)."""
    count = np.bincount(tile[chosen], minlength=tiles)
    return np.cumsum(chosen) - chosen - (np.cumsum(count) - count)[tile]


def _pack_masks(patterns, strips, masks: np.ndarray, row_tile: int, column_tile: int) -> np.ndarray:
    """Bit masks of column tiles: `patterns` lists their strips, `strips` the blocks of a strip."""
    masks = np.concatenate([masks, np.zeros_like(masks[:1])])  # number -1, nobody sees it
    strips = np.concatenate([strips, np.full_like(strips, _EMPTY, shape=(1, strips.shape[1]))])
    packed = np.zeros((len(patterns), row_tile, max(32, column_tile) // 8), np.uint8)
    step = max(1, _MASKS_AT_ONCE // (row_tile * column_tile))
    for start in range(0, len(patterns), step):
        part = strips[patterns[start : start + step]]  # [n, lanes, slots]
        bits = masks[part].transpose(0, 2, 3, 1, 4).reshape(len(part), row_tile, column_tile)
        packed[start : start + step, :, : column_tile // 8] = np.packbits(bits, axis=-1, bitorder="little")
    return packed.view(np.uint32)
