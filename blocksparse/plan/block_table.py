"""A pattern at the grain of blocks: which blocks are active and what their masks are, without looking at each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import gcd, lcm

import numpy as np
from scipy import sparse

from .patterns import NO_SHIFT, Pattern

_CHUNK = 1 << 22  # (query, key) pairs evaluated at once: a predicate's temporary arrays are of int32
Pairs = tuple[np.ndarray, np.ndarray]  # block numbers (query, key)


def block_masks(sees: Callable, query, key, blocksize: int) -> np.ndarray:
    """Block numbers, arrays [n] -> bool [n, blocksize, blocksize]."""
    inside = np.arange(blocksize, dtype=np.int32)
    i = np.asarray(query, np.int32)[:, None, None] * blocksize + inside[:, None]
    j = np.asarray(key, np.int32)[:, None, None] * blocksize + inside
    return np.broadcast_to(sees(i, j), (len(i), blocksize, blocksize))


def seen_blocks(sees: Callable, query, key, blocksize: int) -> np.ndarray:
    """Block numbers, arrays [n] -> bool [n]: where anything is seen. Evaluated in chunks of bounded size."""
    step = max(1, _CHUNK // blocksize**2)
    parts = [slice(start, start + step) for start in range(0, len(query), step)]
    found = [block_masks(sees, query[part], key[part], blocksize).any((1, 2)) for part in parts]
    return np.concatenate(found or [np.zeros(0, bool)])


def as_layout(pairs: Sequence[Pairs], query_blocks: int, key_blocks: int) -> sparse.csr_matrix:
    """Boolean [query_blocks, key_blocks] of active blocks."""
    rows, columns = (np.concatenate(part) for part in zip(*pairs))
    return sparse.csr_matrix((np.ones(len(rows), bool), (rows, columns)), (query_blocks, key_blocks))


def evaluated_layout(sees: Callable, query_blocks: int, key_blocks: int, blocksize: int) -> sparse.csr_matrix:
    """Boolean [query_blocks, key_blocks] of a predicate in which nothing is known to repeat: every pair is asked."""
    rows = max(1, _CHUNK // (key_blocks * blocksize**2))
    pairs: list[Pairs] = []
    for start in range(0, query_blocks, rows):
        shape = min(rows, query_blocks - start), key_blocks
        query, key = (index.ravel() for index in np.indices(shape, np.int32))
        seen = seen_blocks(sees, query + start, key, blocksize)
        pairs.append((query[seen] + start, key[seen]))
    return as_layout(pairs, query_blocks, key_blocks)


class BlockTable:
    """Every block has a representative with the same mask among a few.

    Blocks that differ by a shift along the diagonal have equal masks; so have blocks of one query that differ
    by a period of keys, once they lie beyond the reach. A representative never has a larger number than what it
    stands for, so that a predicate is asked about positions that exist.
    """

    def __init__(self, pattern: Pattern, blocksize: int):
        self.pattern = pattern
        self.blocksize = blocksize
        self.shift = min(pattern.shift // gcd(pattern.shift, blocksize), NO_SHIFT // blocksize)
        self.period = pattern.period // gcd(pattern.period, blocksize)
        self.near = -(
            -(pattern.reach + blocksize - 1) // blocksize
        )  # first block diagonal wholly beyond the reach

    def representative(self, query, key) -> Pairs:
        """Block numbers, arrays -> those of the block with the same mask that stands for all its kind."""
        gap = np.asarray(query) - key
        gap = np.where(gap < self.near, gap, self.near + (gap - self.near) % self.period)
        key = np.where(gap < 0, query % self.shift - gap, (query - gap) % self.shift)
        return key + gap, key

    def masks(self, query, key) -> np.ndarray:
        """Block numbers, arrays [n] -> bool [n, blocksize, blocksize]."""
        return block_masks(self.pattern.sees, query, key, self.blocksize)

    def layout(self, query_blocks: int, key_blocks: int | None = None) -> sparse.csr_matrix:
        """Boolean [query_blocks, key_blocks]: where anything is seen. Costs what is active, never their product.

        A pattern that promises no `ahead` is asked about every key block ahead, once for each shift.
        """
        key_blocks = query_blocks if key_blocks is None else key_blocks
        near = min(self.near, query_blocks)
        active = self._active(
            min(self.shift, key_blocks), min(near + self.period, query_blocks), query_blocks
        )
        key, gap = np.divmod(np.arange(key_blocks * near), max(near, 1))
        seen = (key + gap < query_blocks) & active[key % self.shift, gap]
        behind = [
            (key[seen] + gap[seen], key[seen]),
            *self._far(active, near, query_blocks, key_blocks),
        ]
        return as_layout([*behind, *self._ahead(query_blocks, key_blocks)], query_blocks, key_blocks)

    def _active(self, shifts: int, gaps: int, query_blocks: int) -> np.ndarray:
        """[key block % shift, query block - key block]: whether anything is seen there."""
        key, gap = np.divmod(np.arange(shifts * gaps), max(gaps, 1))
        exists = key + gap < query_blocks
        active = np.zeros(shifts * gaps, bool)
        active[exists] = seen_blocks(self.pattern.sees, (key + gap)[exists], key[exists], self.blocksize)
        return active.reshape(shifts, gaps)

    def _far(self, active: np.ndarray, near: int, query_blocks: int, key_blocks: int) -> list[Pairs]:
        """Pairs beyond the reach: queries equal modulo a cycle see the same keys, up to their own."""
        if not active[:, near:].any():
            return []
        pairs: list[Pairs] = []
        cycle = lcm(self.shift, self.period)
        for start in range(min(cycle, query_blocks)):
            queries = np.arange(start, query_blocks, cycle)
            keys = np.arange(min(queries[-1] - near + 1, key_blocks))
            keys = keys[active[keys % self.shift, near + (start - near - keys) % self.period]]
            counts = np.searchsorted(keys, queries - near, side="right")
            pairs.append((np.repeat(queries, counts), np.concatenate([keys[:count] for count in counts])))
        return pairs

    def _ahead(self, query_blocks: int, key_blocks: int) -> list[Pairs]:
        """Pairs whose key block lies after the query block: each active diagonal, from its first block on."""
        furthest = key_blocks - 1
        if self.pattern.ahead is not None:
            furthest = min(furthest, (self.pattern.ahead + self.blocksize - 1) // self.blocksize)
        pairs: list[Pairs] = []
        for first in range(min(self.shift, query_blocks) if furthest > 0 else 0):
            ahead = np.arange(1, min(furthest, key_blocks - 1 - first) + 1)
            query = np.full(len(ahead), first)
            ahead = ahead[seen_blocks(self.pattern.sees, query, first + ahead, self.blocksize)]
            counts = (np.minimum(query_blocks, key_blocks - ahead) - first + self.shift - 1) // self.shift
            along = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            queries = first + along * self.shift
            pairs.append((queries, queries + np.repeat(ahead, counts)))
        return pairs
