"""OpenAI's lists and look-up tables of a layout's blocks, each built when first read."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from ..plan import Blocks


class LookupTables:
    """The table attributes of BlocksparseTransformer; a subclass sets `active`."""

    active: Blocks
    has_mask: bool

    @cached_property
    def blocks(self) -> int:
        """Active blocks of each head. Raises ValueError where heads differ in that."""
        counts = sorted({len(head.query) for head in self.active.heads})
        if len(counts) > 1:
            raise ValueError(
                f"heads have different numbers of active blocks ({', '.join(map(str, counts))}); the "
                "separate steps and their tables need equal numbers, attention(q, k, v) does not"
            )
        return counts[0]

    @cached_property
    def nt_list(self) -> list[list[tuple[int, int]]]:
        """For each layout, the (query, key) block numbers of its blocks, sorted."""
        return [list(zip(head.query.tolist(), head.key.tolist(), strict=True)) for head in self._heads]

    @cached_property
    def nn_list(self) -> list[list[list[tuple[int, int]]]]:
        """For each layout and query block row, its (block, key block number)."""
        return [_grouped(head.query, head.key, self.active.query_blocks) for head in self._heads]

    @cached_property
    def tn_list(self) -> list[list[list[tuple[int, int]]]]:
        """For each layout and key block column, its (block, query block number)."""
        return [_grouped(head.key, head.query, self.active.key_blocks) for head in self._heads]

    @cached_property
    def nt_lut(self) -> np.ndarray:
        """int32 [lut_heads, blocks, 2]: nt_list."""
        return np.stack([[head.query, head.key] for head in self._equal_heads]).transpose(0, 2, 1).copy()

    @cached_property
    def nn_lut(self) -> np.ndarray:
        """int32 [lut_heads, ctx_blks_q + blocks, 2]: (start, entries) of each row, then nn_list's entries."""
        return np.stack([_lut(head.query, head.key, self.active.query_blocks) for head in self._equal_heads])

    @cached_property
    def tn_lut(self) -> np.ndarray:
        """int32 [lut_heads, ctx_blks_k + blocks, 2]: the same for the columns of tn_list."""
        return np.stack([_lut(head.key, head.query, self.active.key_blocks) for head in self._equal_heads])

    @cached_property
    def nn_max(self) -> int:
        """Blocks in the fullest block row."""
        return max(int(np.bincount(head.query).max(initial=0)) for head in self.active.heads)

    @cached_property
    def tn_max(self) -> int:
        """Blocks in the fullest block column."""
        return max(int(np.bincount(head.key).max(initial=0)) for head in self.active.heads)

    @cached_property
    def softmax_mask_np(self) -> np.ndarray | None:
        """[lut_heads, blocks, bs] of unsigned integers of bs bits: bit k of row q is set where q sees k.

        Blocks of 128: uint64 [lut_heads, blocks, 128, 2]. None without a mask_callback.
        """
        if not self.has_mask:
            return None
        size = self.active.block_size
        bits = np.packbits(self.active.masks, axis=2, bitorder="little").view(f"u{min(size // 8, 8)}")
        rows = bits.reshape(len(bits), *((size,) if size <= 64 else (size, size // 64)))
        return np.stack([rows[head.mask] for head in self._equal_heads])

    @cached_property
    def softmax_mask(self) -> np.ndarray | None:
        """softmax_mask_np as [lut_heads, bs, blocks]; blocks of 128: [lut_heads, 128, blocks, 2]."""
        return None if self.softmax_mask_np is None else self.softmax_mask_np.swapaxes(1, 2).copy()

    def block_coord(self, block: int, head: int = 0) -> tuple[int, int]:
        """(query, key) block numbers of a block."""
        return self.nt_list[head][block]

    @cached_property
    def mask_numbers(self) -> np.ndarray:
        """int32 [lut_heads, blocks]: the row of layout.masks that each block has."""
        return np.stack([head.mask for head in self._equal_heads])

    @cached_property
    def positions(self) -> tuple[np.ndarray, np.ndarray]:
        """(queries int32 [lut_heads, blocks, bs, 1], keys int32 [lut_heads, blocks, 1, bs]) of each block."""
        inside = np.arange(self.active.block_size, dtype=np.int32)
        first = self.nt_lut[..., None, None] * len(inside)
        return first[:, :, 0] + inside[:, None], first[:, :, 1] + inside

    @property
    def _heads(self):
        """The blocks of each layout that was given."""
        return [self.active.heads[number] for number in self.active.head_index[: self.active.lut_heads]]

    @property
    def _equal_heads(self):
        return self._heads if self.blocks else []


def _grouped(row: np.ndarray, column: np.ndarray, rows: int) -> list[list[tuple[int, int]]]:
    order = np.argsort(row, kind="stable")
    entries = list(zip(order.tolist(), column[order].tolist(), strict=True))
    ends = np.cumsum(np.bincount(row, minlength=rows)).tolist()
    return [entries[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _lut(row: np.ndarray, column: np.ndarray, rows: int) -> np.ndarray:
    order = np.argsort(row, kind="stable")
    count = np.bincount(row, minlength=rows)
    header = np.stack([rows + np.cumsum(count) - count, count], axis=1)
    return np.concatenate([header, np.stack([order, column[order]], axis=1)]).astype(np.int32)
