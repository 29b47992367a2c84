"""The tile plan that every kernel follows: block lists and masks in, gathered and masked tiles out (NumPy only).

A row tile is up to M rows. The columns that its rows see are packed side by side into column tiles of N.
Column tiles that every row sees whole come first and need no mask; the others name an M x N bit mask out of a
table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from .layout import Blocks, HeadBlocks
from .tiling import TilePlan, plan_side

TILES = (16, 32, 64, 128)
_MAGIC, _VERSION, _HEADER = 0x42535031, 1, 64
_OFFSETS = [48, 49, *range(50, 58), *range(58, 64), 11, 12]  # header words that tell where each array starts


@dataclass(frozen=True, eq=False)
class Plan:
    """Both sides of an attention: by_query drives the output and dq, by_key drives dk and dv."""

    query_time: int
    key_time: int
    head_index: np.ndarray  # int32 [heads] the distinct head that head h is like
    order: np.ndarray  # int32 [heads] s: plan row r is tensor row (r % (n / s)) * s + r // (n / s)
    by_query: TilePlan  # rows are queries, columns are keys
    by_key: TilePlan  # rows are keys, columns are queries

    @property
    def closed(self) -> int:
        """1 where every key is in the columns of just one row tile of by_query (residue classes, chunks), 2 where every
        row tile also has just one column tile, else 0.
        """
        side, granules = self.by_query, self.key_time // self.by_query.granule
        real = side.columns != side.columns[:, :1]
        real[:, 0] = True
        distinct = len(side.head_tiles) - 1
        if real.sum() != distinct * granules:
            return 0
        head = np.repeat(np.repeat(np.arange(distinct), np.diff(side.head_tiles)), np.diff(side.offset))
        if len(np.unique((head[:, None] * granules + side.columns)[real])) < distinct * granules:
            return 0
        return 2 if np.all(np.diff(side.offset) == 1) else 1

    def pack(self) -> np.ndarray:
        """The plan as one int32 vector: 64 words of header, then every array at a multiple of 16 bytes.

        Header: [0] magic, [1] version, [2..5] hash of all that follows, [6] length of the vector, [7] query_time,
        [8] key_time, [9] heads, [10] distinct heads, [13] closed. From [16] for by_query and [32] for
        by_key: M, N, g, row tiles, column tiles, masks, most row tiles of a head, most column tiles of a row tile.
        Where the arrays start: [48] head_index, [49] order, [50..57] by_query's arrays as in TilePlan, [58..63, 11, 12]
        by_key's.
        """
        arrays = [self.head_index, self.order, *_arrays(self.by_query), *_arrays(self.by_key)]
        words = [np.ascontiguousarray(array).reshape(-1).view(np.int32) for array in arrays]
        ends = _HEADER + np.cumsum([-(-len(array) // 4) * 4 for array in words])
        starts = np.concatenate([[_HEADER], ends[:-1]])
        blob = np.zeros(ends[-1], np.int32)
        for start, array in zip(starts, words, strict=True):
            blob[start : start + len(array)] = array
        distinct = len(self.by_query.head_tiles) - 1
        blob[:2] = _MAGIC, _VERSION
        blob[6:11] = len(blob), self.query_time, self.key_time, len(self.head_index), distinct
        blob[13] = self.closed
        blob[16:24], blob[32:40] = _record(self.by_query), _record(self.by_key)
        blob[_OFFSETS] = starts
        blob[2:6] = _digest(blob)
        return blob


def _digest(blob: np.ndarray) -> np.ndarray:
    return np.frombuffer(hashlib.blake2b(blob[6:].tobytes(), digest_size=16).digest(), np.int32)


def _arrays(side: TilePlan) -> list[np.ndarray]:
    return [getattr(side, field.name) for field in fields(TilePlan)[3:]]


def _record(side: TilePlan) -> list[int]:
    most_tiles, most_columns = (np.diff(starts).max(initial=0) for starts in (side.head_tiles, side.offset))
    sizes = len(side.rows), len(side.columns), len(side.masks)
    return [side.row_tile, side.column_tile, side.granule, *sizes, most_tiles, most_columns]


def unpack(blob: np.ndarray) -> Plan:
    """The inverse of Plan.pack. Raises ValueError that names the first field out of range."""
    blob = np.asarray(blob)
    _require(blob.dtype == np.int32 and blob.ndim == 1 and len(blob) >= _HEADER, "blob", "int32 [64 or more]")
    _require(blob[0] == _MAGIC and blob[1] == _VERSION, "magic, version", f"{_MAGIC:#x}, {_VERSION}")
    _require(blob[6] == len(blob), "length", f"{len(blob)}, the blob's own")
    _require(np.array_equal(blob[2:6], _digest(blob)), "hash", "the content's")
    query_time, key_time, heads, distinct = blob[7:11].tolist()
    starts = iter(blob[_OFFSETS].tolist())

    def take(*shape: int) -> np.ndarray:
        start, size = next(starts), int(np.prod(shape))
        _require(
            _HEADER <= start <= len(blob) - size and start % 4 == 0, f"start of {shape}", "inside the blob"
        )
        return blob[start : start + size].reshape(shape)

    def take_side(name: str, record: list[int]) -> TilePlan:
        m, n, g, tiles, column_tiles, masks = record
        _require(m in TILES and n in TILES, f"{name}.row_tile, column_tile", f"in {TILES}")
        _require(g > 0 and m % g == n % g == 0, f"{name}.granule", "a divisor of both tiles")
        shapes = [(distinct + 1,), (tiles, m // g), (tiles,), (tiles + 1,), (tiles,), (column_tiles, n // g)]
        arrays = [take(*shape) for shape in [*shapes, (column_tiles,), (masks, m, -(-n // 32))]]
        return TilePlan(m, n, g, *arrays[:-1], arrays[-1].view(np.uint32))

    head_index, order = take(heads), take(heads)
    by_query, by_key = (
        take_side(name, blob[at : at + 6].tolist()) for name, at in (("by_query", 16), ("by_key", 32))
    )
    check_order(order, query_time, key_time, max(by_query.granule, by_key.granule))
    _require(_within(head_index, distinct), "head_index", f"below {distinct}")
    _check_side("by_query", by_query, query_time, key_time)
    _check_side("by_key", by_key, key_time, query_time)
    return Plan(query_time, key_time, head_index, order, by_query, by_key)


def _check_side(name: str, side: TilePlan, rows: int, columns: int) -> None:
    tiles, column_tiles, count = len(side.rows), len(side.columns), np.diff(side.offset)
    for field, start, stop in (("head_tiles", side.head_tiles, tiles), ("offset", side.offset, column_tiles)):
        rises = start[0] == 0 and start[-1] == stop and np.all(np.diff(start) >= 0)
        _require(rises, f"{name}.{field}", f"rising from 0 to {stop}")
    _require(
        np.all((side.full >= 0) & (side.full <= count)), f"{name}.full", "at most the row's column tiles"
    )
    _require(_within(side.row_count - 1, side.row_tile), f"{name}.row_count", f"1 to {side.row_tile}")
    for field, numbers, all_rows in (("rows", side.rows, rows), ("columns", side.columns, columns)):
        granules = all_rows // side.granule
        _require(_within(numbers, granules), f"{name}.{field}", f"below {granules}")
    masked = np.arange(column_tiles) - np.repeat(side.offset[:-1], count) >= np.repeat(side.full, count)
    in_table = _within(side.mask, np.where(masked, len(side.masks), 1))
    _require(in_table, f"{name}.mask", f"below {len(side.masks)}, and 0 where full")


def _within(numbers: np.ndarray, limit) -> bool:
    return bool(np.all((numbers >= 0) & (numbers < limit)))


def _require(holds: bool, field: str, wanted: str) -> None:
    if not holds:
        raise ValueError(f"the plan is damaged: {field} has to be {wanted}")


def make_plan(
    blocks: Blocks,
    order: int | Sequence[int] = 1,
    heads: int | None = None,
    tiles_by_query: tuple[int, int] = (64, 64),
    tiles_by_key: tuple[int, int] = (64, 64),
) -> Plan:
    """Plan an attention over `blocks` in row tiles of M and column tiles of N.

    order: s, one number or one a head: row r of the layout is row (r % (n / s)) * s + r // (n / s) of the
        tensor, so that s = stride puts the rows of one residue class side by side.
    heads: how many heads there are, where `blocks` describes one for all.
    tiles_by_query, tiles_by_key: (M, N) of each side, out of 16, 32, 64, 128.
    Raises ValueError for an order that does not divide both times into whole blocks, or a tile size not
    offered.
    """
    for name, tiles in (("tiles_by_query", tiles_by_query), ("tiles_by_key", tiles_by_key)):
        if len(tiles) != 2 or not set(tiles) <= set(TILES):
            raise ValueError(f"{name}={tiles}; it has to be two of {TILES}")
    head_index = np.broadcast_to(blocks.head_index, heads or len(blocks.head_index))
    order = np.broadcast_to(np.asarray(order, np.int32), head_index.shape)
    check_order(order, blocks.query_time, blocks.key_time, blocks.block_size)
    by_query = plan_side(
        list(blocks.heads), blocks.masks, blocks.query_blocks, blocks.key_blocks, *tiles_by_query
    )
    turned = [HeadBlocks(query=head.key, key=head.query, mask=head.mask) for head in blocks.heads]
    turned_masks = blocks.masks.transpose(0, 2, 1)
    by_key = plan_side(turned, turned_masks, blocks.key_blocks, blocks.query_blocks, *tiles_by_key)
    return Plan(blocks.query_time, blocks.key_time, head_index, order, by_query, by_key)


def check_order(order: np.ndarray, query_time: int, key_time: int, unit: int) -> None:
    """Raise ValueError unless each side's residue classes, time / order rows each, are whole units."""
    for stride in np.unique(order).tolist():
        if stride < 1 or (stride > 1 and (query_time % (stride * unit) or key_time % (stride * unit))):
            raise ValueError(
                f"order={stride} has to divide query time {query_time} and key time {key_time} into residue "
                f"classes of a multiple of {unit} rows"
            )
