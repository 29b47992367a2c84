"""Rows of a block list gathered into rectangles, for operations that know no ragged arrays (NumPy only)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Rectangle:
    """Rows with about the same number of entries, in chunks that are worked on one after the other."""

    rows: np.ndarray  # int32 [chunks, R]; the last chunk repeats its last row
    entries: np.ndarray  # int32 [chunks, R, C] numbers in the list; -1 where a row has fewer


@dataclass(frozen=True, eq=False)
class Rows:
    """Every row that has entries, in rectangles, and its place when those are laid in line."""

    rectangles: list[Rectangle]
    place: np.ndarray  # int32 [rows], from 1; a row without entries has 0


def gather_rows(row: np.ndarray, rows: int, limit: int) -> Rows:
    """Lay out a list sorted by `row`. limit: entries a chunk may hold (one row always fits)."""
    count = np.bincount(row, minlength=rows)
    start = np.cumsum(count) - count
    width = _round_up(count)
    place = np.zeros(rows, np.int32)
    rectangles, total = [], 1
    for c in np.unique(width[width > 0]).tolist():
        chosen = np.flatnonzero(width == c)
        chunks = -(-len(chosen) // max(1, limit // c))
        padded = np.resize(chosen, chunks * -(-len(chosen) // chunks))
        padded[len(chosen) :] = chosen[-1]
        entries = start[padded, None] + np.arange(c)
        entries[np.arange(c) >= count[padded, None]] = -1
        place[chosen] = total + np.arange(len(chosen))
        total += len(padded)
        shaped = padded.reshape(chunks, -1), entries.reshape(chunks, -1, c)
        rectangles.append(Rectangle(*(array.astype(np.int32) for array in shaped)))
    return Rows(rectangles, place)


def _round_up(count: np.ndarray) -> np.ndarray:
    """The next of 0 .. 8, 10, 12, 14, 16, 20, 24, 28, 32, 40 ...: few widths, at most a quarter too wide."""
    step = 2 ** np.maximum(np.frexp(count - 1)[1] - 3, 0)
    return -(-count // step) * step
