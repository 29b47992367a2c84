"""A plan as one int32 vector, version 1: what SavedModels hold and every kernel reads.

64 words of header, then every array at a multiple of 16 bytes. The header's words are those of Word; SIDE says what
the eight words from BY_QUERY and from BY_KEY on mean, ARRAYS which arrays of a TilePlan there are and in which order.
cpu/plan_words.h has the same names for C++.
"""

from __future__ import annotations

import hashlib
from enum import IntEnum

import numpy as np

from .plan import ROW_TILES, TILES, Plan, check_residues
from .tiling import TilePlan

MAGIC, VERSION, HEADER = 0x42535031, 1, 64
SIDE = "row_tile column_tile granule row_tiles column_tiles masks most_row_tiles most_column_tiles".split()
ARRAYS = "head_tiles rows row_count offset full columns mask masks".split()


class Word(IntEnum):
    """Where a plan's header holds what."""

    MAGIC = 0
    VERSION = 1
    HASH = 2  # four words: BLAKE2b of all that follows them
    LENGTH = 6  # of the whole vector
    QUERY_TIME = 7
    KEY_TIME = 8
    HEADS = 9
    DISTINCT = 10  # distinct heads
    KEY_ARRAYS_END = 11  # two words: where the last two of by_key's arrays start
    CLOSED = 13
    KEY_HEADS = 14  # heads of keys; 0 where there are as many as heads
    DISTINCT_KEYS = 15  # distinct key heads; this and the two below are 0 with KEY_HEADS
    BY_QUERY = 16  # eight words: SIDE
    BY_KEY = 32
    KEY_INDEX = 40  # where an array starts
    KEY_RESIDUES = 41
    HEAD_INDEX = 48  # from here on: where an array starts
    RESIDUES = 49
    QUERY_ARRAYS = 50  # eight words: ARRAYS
    KEY_ARRAYS = 58  # six words: the first six of ARRAYS; KEY_ARRAYS_END has the others


_CONTENT = Word.HASH + 4  # the first word that is hashed
_QUERY_STARTS = [Word.QUERY_ARRAYS + number for number in range(8)]
_KEY_STARTS = [
    *(Word.KEY_ARRAYS + number for number in range(6)),
    *(Word.KEY_ARRAYS_END + number for number in range(2)),
]
_STARTS = [Word.HEAD_INDEX, Word.RESIDUES, *_QUERY_STARTS, *_KEY_STARTS]


def pack(plan: Plan) -> np.ndarray:
    """The plan as int32 [length]."""
    sides = (plan.by_query, plan.by_key)
    arrays = [plan.head_index, plan.residues, *(getattr(side, name) for side in sides for name in ARRAYS)]
    starts_at = list(_STARTS)
    if plan.group > 1:
        arrays += [plan.key_index, plan.residues[:: plan.group]]
        starts_at += [Word.KEY_INDEX, Word.KEY_RESIDUES]
    words = [np.ascontiguousarray(array).reshape(-1).view(np.int32) for array in arrays]
    ends = HEADER + np.cumsum([-(-len(array) // 4) * 4 for array in words])
    starts = np.concatenate([[HEADER], ends[:-1]])
    blob = np.zeros(ends[-1], np.int32)
    for start, array in zip(starts, words, strict=True):
        blob[start : start + len(array)] = array
    blob[Word.MAGIC], blob[Word.VERSION], blob[Word.LENGTH] = MAGIC, VERSION, len(blob)
    blob[Word.QUERY_TIME], blob[Word.KEY_TIME] = plan.query_time, plan.key_time
    blob[Word.HEADS], blob[Word.DISTINCT] = len(plan.head_index), len(plan.by_query.head_tiles) - 1
    blob[Word.CLOSED] = plan.closed
    if plan.group > 1:
        blob[Word.KEY_HEADS], blob[Word.DISTINCT_KEYS] = (
            len(plan.key_index),
            len(plan.by_key.head_tiles) - 1,
        )
    for word, side in zip((Word.BY_QUERY, Word.BY_KEY), sides):
        blob[word : word + len(SIDE)] = _record(side)
    blob[starts_at] = starts
    blob[Word.HASH : _CONTENT] = digest(blob)
    return blob


def unpack(blob: np.ndarray) -> Plan:
    """The inverse of pack. Raises ValueError that names the first field out of range."""
    blob = np.asarray(blob)
    _require(blob.dtype == np.int32 and blob.ndim == 1 and len(blob) >= HEADER, "blob", "int32 [64 or more]")
    known = blob[Word.MAGIC] == MAGIC and blob[Word.VERSION] == VERSION
    _require(known, "magic, version", f"{MAGIC:#x}, {VERSION}")
    _require(blob[Word.LENGTH] == len(blob), "length", f"{len(blob)}, the blob's own")
    _require(np.array_equal(blob[Word.HASH : _CONTENT], digest(blob)), "hash", "the content's")
    query_time, key_time, heads, distinct = blob[Word.QUERY_TIME : Word.DISTINCT + 1].tolist()
    head_index, residues = (_take(blob, word, heads) for word in (Word.HEAD_INDEX, Word.RESIDUES))
    by_query = _take_side(blob, "by_query", Word.BY_QUERY, _QUERY_STARTS, distinct)
    grouped = bool(blob[Word.KEY_HEADS])
    key_index, distinct_keys = _take_key_heads(blob, residues) if grouped else (head_index, distinct)
    by_key = _take_side(blob, "by_key", Word.BY_KEY, _KEY_STARTS, distinct_keys)
    check_residues(residues, query_time, key_time, max(by_query.granule, by_key.granule))
    _require(_within(head_index, distinct), "head_index", f"below {distinct}")
    _check_side("by_query", by_query, query_time, key_time)
    _require(_within(key_index, distinct_keys), "key_index", f"below {distinct_keys}")
    _check_side("by_key", by_key, key_time, query_time * (heads // len(key_index)))
    return Plan(query_time, key_time, head_index, residues, by_query, by_key, key_index)


def digest(blob: np.ndarray) -> np.ndarray:
    """int32 [4]: the hash of a blob's content."""
    return np.frombuffer(hashlib.blake2b(blob[_CONTENT:].tobytes(), digest_size=16).digest(), np.int32)


def _record(side: TilePlan) -> list[int]:
    most_tiles, most_columns = (np.diff(starts).max(initial=0) for starts in (side.head_tiles, side.offset))
    sizes = len(side.rows), len(side.columns), len(side.masks)
    return [side.row_tile, side.column_tile, side.granule, *sizes, most_tiles, most_columns]


def _take(blob: np.ndarray, word: int, *shape: int) -> np.ndarray:
    """The array whose start a word of the header tells."""
    start, size = int(blob[word]), int(np.prod(shape))
    inside = HEADER <= start <= len(blob) - size and start % 4 == 0
    _require(inside, f"start of {shape}", "inside the blob")
    return blob[start : start + size].reshape(shape)


def _take_key_heads(blob: np.ndarray, residues: np.ndarray) -> tuple[np.ndarray, int]:
    """(the distinct key head of each, how many of these there are) of a plan with fewer key heads than heads."""
    kv_heads, heads = int(blob[Word.KEY_HEADS]), len(residues)
    _require(0 < kv_heads < heads and heads % kv_heads == 0, "key_heads", f"a divisor of {heads}")
    index, own = (_take(blob, word, kv_heads) for word in (Word.KEY_INDEX, Word.KEY_RESIDUES))
    _require(
        np.array_equal(np.repeat(own, heads // kv_heads), residues), "key_residues", "those of the heads"
    )
    return index, int(blob[Word.DISTINCT_KEYS])


def _take_side(blob: np.ndarray, name: str, record: int, starts: list[int], distinct: int) -> TilePlan:
    m, n, g, tiles, column_tiles, masks = blob[record : record + 6].tolist()
    _require(m in ROW_TILES and n in TILES, f"{name}.row_tile, column_tile", f"in {ROW_TILES}, {TILES}")
    _require(g > 0 and m % g == n % g == 0, f"{name}.granule", "a divisor of both tiles")
    shapes = {
        "head_tiles": (distinct + 1,),
        "rows": (tiles, m // g),
        "row_count": (tiles,),
        "offset": (tiles + 1,),
        "full": (tiles,),
        "columns": (column_tiles, n // g),
        "mask": (column_tiles,),
        "masks": (masks, m, -(-n // 32)),
    }
    arrays = {array: _take(blob, word, *shapes[array]) for array, word in zip(ARRAYS, starts, strict=True)}
    arrays["masks"] = arrays["masks"].view(np.uint32)
    return TilePlan(m, n, g, **arrays)


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


def _within(numbers: np.ndarray, limit: int | np.ndarray) -> bool:
    return bool(np.all((numbers >= 0) & (numbers < limit)))


def _require(holds: bool | np.bool_, field: str, wanted: str) -> None:
    if not holds:
        raise ValueError(f"the plan is damaged: {field} has to be {wanted}")
