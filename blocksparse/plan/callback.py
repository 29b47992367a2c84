"""Mask callbacks of OpenAI's interface, made of predicates of (query, key)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .block_table import BlockTable, Pairs, block_masks, evaluated_layout
from .patterns import Pattern

if TYPE_CHECKING:
    from typing_extensions import TypeIs

Predicate = Callable | Pattern


class MaskCallback:
    """A mask_callback; head h has predicates[h % len(predicates)]."""

    def __init__(self, predicates: Sequence[Predicate], keys_there: Sequence[Callable | None] = (None,)):
        """keys_there(key): which keys exist, one a predicate or one for all; None: all of them."""
        self.predicates = predicates
        self.keys_there = [keys_there[number % len(keys_there)] for number in range(len(predicates))]
        self.distinct_heads = len(predicates)

    def __call__(self, blk_shape: Sequence[int], head_idx: int, qry_idx, key_idx, blk_idx) -> np.ndarray:
        return self.batch(blk_shape, head_idx, [qry_idx], [key_idx], [blk_idx])[0]

    def batch(self, blk_shape: Sequence[int], head_idx: int, qry_idx, key_idx, blk_idx) -> np.ndarray:
        return block_masks(self._sees(head_idx), qry_idx, key_idx, blk_shape[0])

    def _sees(self, head: int) -> Callable:
        number = head % len(self.predicates)
        predicate, there = self.predicates[number], self.keys_there[number]
        sees = predicate.sees if is_pattern(predicate) else predicate
        return sees if there is None else lambda i, j: sees(i, j) & there(j)


class PlannedCallback(MaskCallback):
    """One for a known block size, which names a block that stands for all with its mask: few are evaluated."""

    def __init__(
        self,
        predicates: Sequence[Predicate],
        block_size: int,
        keys_there: Sequence[Callable | None] = (None,),
    ):
        super().__init__(predicates, keys_there)
        self.block_size = block_size
        self.tables = [BlockTable(p, block_size) if is_pattern(p) else None for p in predicates]

    def representative(self, head_idx: int, qry_idx, key_idx) -> Pairs:
        number = head_idx % len(self.tables)
        table, there = self.tables[number], self.keys_there[number]
        if table is None:
            return qry_idx, key_idx
        same = table.representative(qry_idx, key_idx)
        if there is None:
            return same
        positions = np.asarray(key_idx, np.int32)[:, None] * self.block_size + np.arange(self.block_size)
        whole = there(positions).all(1)  # a block with keys that do not exist stands for itself alone
        return np.where(whole, same[0], qry_idx), np.where(whole, same[1], key_idx)

    def layouts(self, heads: int, query_blocks: int, key_blocks: int) -> list:
        """scipy.sparse [query_blocks, key_blocks] of each head, or the one that all share."""
        distinct = [self._layout(number, query_blocks, key_blocks) for number in range(len(self.predicates))]
        return distinct if len(distinct) == 1 else [distinct[head % len(distinct)] for head in range(heads)]

    def _layout(self, number: int, query_blocks: int, key_blocks: int):
        table = self.tables[number]
        if table is None:
            return evaluated_layout(self._sees(number), query_blocks, key_blocks, self.block_size)
        return table.layout(query_blocks, key_blocks)


def is_pattern(predicate: Predicate) -> TypeIs[Pattern]:
    """By what it has: a Pattern made before the modules were imported again is of another class."""
    return hasattr(predicate, "sees")
