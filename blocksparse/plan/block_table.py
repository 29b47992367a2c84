"""A pattern at the grain of blocks: which blocks are active and what their masks are, without looking at each."""

from __future__ import annotations

from math import gcd, lcm

import numpy as np
from scipy import sparse

from .patterns import Pattern

_CHUNK = 4096  # blocks evaluated at once


class BlockTable:
    """Every block has a representative with the same mask among a few.

    Blocks that differ by a shift along the diagonal have equal masks; so have blocks of one query that differ
    by a period of keys, once they lie beyond the reach.
    """

    def __init__(self, pattern: Pattern, blocksize: int):
        self.pattern = pattern
        self.blocksize = blocksize
        self.shift = pattern.shift // gcd(pattern.shift, blocksize)
        self.period = pattern.period // gcd(pattern.period, blocksize)
        self.near = -(
            -(pattern.reach + blocksize - 1) // blocksize
        )  # first block diagonal wholly beyond the reach

    def representative(self, query: np.ndarray, key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Block numbers, arrays -> those of the block with the same mask that stands for all its kind."""
        gap = np.asarray(query) - key
        gap = np.where(gap < self.near, gap, self.near + (gap - self.near) % self.period)
        key = (query - gap) % self.shift
        return key + gap, key

    def masks(self, query: np.ndarray, key: np.ndarray) -> np.ndarray:
        """Block numbers, arrays [n] -> bool [n, blocksize, blocksize]."""
        inside = np.arange(self.blocksize, dtype=np.int32)
        i = np.asarray(query, np.int32)[:, None, None] * self.blocksize + inside[:, None]
        j = np.asarray(key, np.int32)[:, None, None] * self.blocksize + inside
        return np.broadcast_to(self.pattern.sees(i, j), (len(i), self.blocksize, self.blocksize))

    def layout(self, blocks: int) -> sparse.csr_matrix:
        """Boolean [blocks, blocks]: where anything is seen. Costs what is active, never blocks squared."""
        near = min(self.near, blocks)
        active = self._active(min(self.shift, blocks), min(near + self.period, blocks))
        key, gap = np.divmod(np.arange(blocks * near), max(near, 1))
        seen = (key + gap < blocks) & active[key % self.shift, gap]
        pairs = [(key[seen] + gap[seen], key[seen]), *self._far(active, near, blocks)]
        rows, columns = (np.concatenate(part) for part in zip(*pairs))
        return sparse.csr_matrix((np.ones(len(rows), bool), (rows, columns)), (blocks, blocks))

    def _active(self, shifts: int, gaps: int) -> np.ndarray:
        """[key block % shift, query block - key block]: whether anything is seen there."""
        key, gap = np.divmod(np.arange(shifts * gaps), max(gaps, 1))
        parts = [slice(start, start + _CHUNK) for start in range(0, len(key), _CHUNK)]
        found = [self.masks(key[part] + gap[part], key[part]).any((1, 2)) for part in parts]
        return np.concatenate(found or [np.zeros(0, bool)]).reshape(shifts, gaps)

    def _far(self, active: np.ndarray, near: int, blocks: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Pairs beyond the reach: queries equal modulo a cycle see the same keys, up to their own."""
        if not active[:, near:].any():
            return []
        pairs = []
        cycle = lcm(self.shift, self.period)
        for start in range(min(cycle, blocks)):
            queries = np.arange(start, blocks, cycle)
            keys = np.arange(queries[-1] - near + 1)
            keys = keys[active[keys % self.shift, near + (start - near - keys) % self.period]]
            counts = np.searchsorted(keys, queries - near, side="right")
            pairs.append((np.repeat(queries, counts), np.concatenate([keys[:count] for count in counts])))
        return pairs
