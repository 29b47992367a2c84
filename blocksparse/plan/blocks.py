"""What a layout and a mask callback mean: each head's active blocks and their distinct masks (NumPy only)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from .checks import check_block_size

_CHUNK = 4096  # blocks per call of callback.batch: 4096 masks of 128 x 128 are 64 MB


@dataclass(frozen=True, eq=False)
class HeadBlocks:
    """One distinct head's active blocks, sorted by (query, key)."""

    query: np.ndarray  # int32 [blocks] query block number
    key: np.ndarray  # int32 [blocks] key block number
    mask: np.ndarray  # int32 [blocks] row of Blocks.masks


@dataclass(frozen=True, eq=False)
class Blocks:
    """A layout and its masks, each distinct head and each distinct mask once."""

    block_size: int
    query_blocks: int
    key_blocks: int
    heads: tuple[HeadBlocks, ...]  # the distinct heads
    head_index: np.ndarray  # int32 [heads] which of `heads` head h uses
    masks: np.ndarray  # bool [distinct, block_size, block_size]; row 0 is all True
    lut_heads: int  # layouts given: 1 for all heads together, or one for each

    @property
    def query_time(self) -> int:
        return self.query_blocks * self.block_size

    @property
    def key_time(self) -> int:
        return self.key_blocks * self.block_size


def build_blocks(
    layout: Any, block_size: int, mask_callback: Callable | None = None, heads: int | None = None
) -> Blocks:
    """Read a layout and evaluate its masks.

    layout: [query_blocks, key_blocks] (then `heads` is needed) or [heads, query_blocks, key_blocks], nonzero
        where a block is active; or a scipy.sparse matrix; or a sequence of them, one a head.
    mask_callback(blk_shape, head_idx, qry_idx, key_idx, blk_idx) returns bool [block_size, block_size], True
        where the query (row) may see the key (column), or integers, 0 for False. It may carry three attributes
        that make it cheap: .batch, the same over index arrays, returning [n, block_size, block_size];
        .representative(head_idx, qry_idx, key_idx), the numbers of a block with the same mask, for arrays of
        blocks; .distinct_heads, a number p such that heads h and h % p have the same masks.
    Raises ValueError and TypeError for a layout, block size, number of heads, callback or mask of the wrong kind.
    """
    check_block_size("block_size", block_size)
    if not (mask_callback is None or callable(mask_callback) or hasattr(mask_callback, "batch")):
        raise TypeError(
            f"mask_callback is {mask_callback!r}; give None or a function of blk_shape, head_idx, qry_idx, key_idx, "
            "blk_idx"
        )
    one = sparse.issparse(layout)
    layout = _read(layout)
    one = one or (isinstance(layout, np.ndarray) and layout.ndim == 2)
    coordinates = _coordinates(layout)
    query_blocks, key_blocks = layout[0].shape if isinstance(layout, list) else layout.shape[-2:]
    lut_heads = len(coordinates)
    heads = _check_heads(heads, one, lut_heads)
    table = _MaskTable(block_size)
    period = min(lut_heads, getattr(mask_callback, "distinct_heads", lut_heads)) if mask_callback else 1
    distinct: list[HeadBlocks] = []
    evaluated: dict = {}  # (coordinates, head % period) -> number of the distinct head
    known: dict = {}  # content -> number of the distinct head
    head_index = np.zeros(lut_heads, np.int32)
    for head, (query, key) in enumerate(coordinates):
        where = query.tobytes(), key.tobytes()
        if (where, head % period) not in evaluated:
            mask = np.zeros(len(query), np.int32)
            if mask_callback:
                mask = _evaluate(mask_callback, table, head, query, key, key_blocks)
            number = known.setdefault((where, mask.tobytes()), len(distinct))
            if number == len(distinct):
                distinct.append(HeadBlocks(query, key, mask))
            evaluated[where, head % period] = number
        head_index[head] = evaluated[where, head % period]
    if lut_heads != heads:
        head_index = np.zeros(heads, np.int32)
    return Blocks(block_size, query_blocks, key_blocks, tuple(distinct), head_index, table.masks(), lut_heads)


def _read(layout: Any) -> np.ndarray | list:
    """A layout as an array of 2 or 3 dimensions, or a list of sparse matrices of one shape."""
    if sparse.issparse(layout):
        layout = [layout]
    if isinstance(layout, Sequence) and layout and all(sparse.issparse(head) for head in layout):
        shapes = {head.shape for head in layout}
        if len(shapes) != 1:
            raise ValueError(
                f"layout has heads of different shapes, {sorted(shapes)}; give all heads the same shape"
            )
        return list(layout)
    layout = np.asarray(layout)
    if layout.dtype.kind not in "biuf":
        raise TypeError(f"layout has dtype {layout.dtype}; give a boolean array or scipy.sparse matrices")
    if layout.ndim not in (2, 3) or 0 in layout.shape:
        raise ValueError(
            f"layout has shape {list(layout.shape)}; it has to be [query_blocks, key_blocks] or "
            "[heads, query_blocks, key_blocks], none of them 0"
        )
    return layout


def _coordinates(layout: np.ndarray | list) -> list[tuple[np.ndarray, np.ndarray]]:
    """Active blocks (query, key) of each head, sorted."""
    if isinstance(layout, list):
        read = {
            id(head): _sorted_nonzero(head) for head in layout
        }  # a matrix given for many heads is read once
        return [read[id(head)] for head in layout]
    heads = layout.reshape((-1, *layout.shape[-2:]))
    found = [np.nonzero(head) for head in heads]
    return [(query.astype(np.int32), key.astype(np.int32)) for query, key in found]


def _sorted_nonzero(matrix: Any) -> tuple[np.ndarray, np.ndarray]:
    matrix = sparse.csr_matrix(matrix)
    matrix.sum_duplicates()  # also sorts each row by column
    if not matrix.data.all():
        matrix = matrix.copy()
        matrix.eliminate_zeros()
    query = np.repeat(np.arange(matrix.shape[0], dtype=np.int32), np.diff(matrix.indptr))
    return query, matrix.indices.astype(np.int32)


def _check_heads(heads: int | None, one: bool, lut_heads: int) -> int:
    """one: the layout came without an axis of heads."""
    if heads is None:
        if one:
            raise ValueError("heads is None; a layout shared by all heads needs heads=, the number of heads")
        return lut_heads
    if heads < 1 or lut_heads not in (1, heads):
        raise ValueError(f"heads={heads} does not fit a layout of {lut_heads} heads; use heads={lut_heads}")
    return heads


def _evaluate(
    callback: Any, table: _MaskTable, head: int, query: np.ndarray, key: np.ndarray, key_blocks: int
) -> np.ndarray:
    """Mask number of each block: the callback once a block, or once a representative where it names them."""
    index = np.arange(len(query))
    representative = getattr(callback, "representative", None)
    if representative is None:
        return _numbers(callback, table, head, query, key, index)
    same_query, same_key = representative(head, query, key)
    code = np.asarray(same_query, np.int64) * key_blocks + same_key
    _, first, inverse = np.unique(code, return_index=True, return_inverse=True)
    return _numbers(callback, table, head, query[first], key[first], index[first])[inverse]


def _numbers(
    callback: Any, table: _MaskTable, head: int, query: np.ndarray, key: np.ndarray, index: np.ndarray
) -> np.ndarray:
    shape = (table.block_size, table.block_size)
    batch = getattr(callback, "batch", None)
    if batch is None:
        blocks = zip(query.tolist(), key.tolist(), index.tolist(), strict=True)
        return np.array(
            [table.number(callback(shape, head, q, k, b), (head, q, k)) for q, k, b in blocks], np.int32
        )
    numbers = [np.zeros(0, np.int32)]
    for start in range(0, len(query), _CHUNK):
        part = slice(start, start + _CHUNK)
        masks = batch(shape, head, query[part], key[part], index[part])
        if len(masks) != len(query[part]):
            raise ValueError(f"mask_callback.batch returned {len(masks)} masks for {len(query[part])} blocks")
        where = zip(masks, query[part], key[part], strict=True)
        numbers.append(np.array([table.number(mask, (head, q, k)) for mask, q, k in where], np.int32))
    return np.concatenate(numbers)


class _MaskTable:
    """The distinct masks in the order they were first seen; number 0 sees everything."""

    def __init__(self, block_size: int):
        self.block_size = block_size
        self._number: dict[bytes, int] = {}
        self._masks: list[np.ndarray] = []
        self.number(np.ones((block_size, block_size), bool), (0, 0, 0))

    def number(self, mask: Any, block: tuple) -> int:
        shape = (self.block_size, self.block_size)
        # What np.packbits reads, and with it OpenAI's.
        takes = isinstance(mask, np.ndarray) and mask.dtype.kind in "biu"
        if not takes or mask.shape != shape:
            came = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, np.ndarray) else type(mask).__name__
            error = ValueError if takes else TypeError
            raise error(
                f"mask_callback returned {came} for head, query and key block {tuple(map(int, block))}; "
                f"it has to return a NumPy array of bool {list(shape)}"
            )
        bits = np.packbits(mask).tobytes()
        number = self._number.setdefault(bits, len(self._masks))
        if number == len(self._masks):
            self._masks.append(np.array(mask, bool))
        return number

    def masks(self) -> np.ndarray:
        return np.stack(self._masks)
