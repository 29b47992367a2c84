"""Bits against the least context, of the same tokens in every row (paper, Table 3).

Where each row moves its windows by a distance of its own, as in evaluation.windows, a token stands at another place of
its window in every row, and under `fixed` sees another part of its own chunk: rows then differ by more than context.
Here windows move by `shift` tokens whatever the row, so that every token is scored from each of n_ctx / shift places,
and a row is the mean over those places that have its minimum context before them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from . import data
from .evaluation import Score, batches
from .model import bits


@dataclass(frozen=True)
class Row(Score):
    less: float | None = None  # than the row before
    less_error: float | None = None  # its standard error


def score(
    n_ctx: int, forward: Callable, source, contexts: list[int], shift: int, batch: int = 1, bar: bool = False
) -> list[Row]:
    """A row for each minimum context. Raises ValueError as `check` does."""
    check(n_ctx, source, contexts, shift)
    spent = _spent(n_ctx, forward, source.tokens, shift, batch, bar)
    return _rows(of_pieces(spent) / shift, len(spent), shift, contexts)


def check(n_ctx: int, source, contexts: list[int], shift: int) -> None:
    """Raises ValueError where rows could not score the same tokens."""
    if not isinstance(source, data.Stream):
        raise ValueError(f"--shift {shift}: an image is a context of its own; leave it out")
    if n_ctx % shift or any(context % shift for context in contexts):
        raise ValueError(
            f"--shift {shift} must divide the model's context, {n_ctx:,}, and every --min-context: "
            f"{', '.join(f'{context:,}' for context in contexts)}"
        )
    if max(contexts) >= n_ctx:
        raise ValueError(
            f"--min-context {max(contexts)} must lie between 0 and the model's context less one, {n_ctx - 1}"
        )
    least = 2 * n_ctx - shift  # one piece that stands at every place of some window
    if len(source.tokens) < least:
        raise ValueError(
            f"--shift {shift} wants {least:,} tokens at least, and there are {len(source.tokens):,}"
        )


def of_pieces(spent: np.ndarray) -> np.ndarray:
    """[windows, places] -> [pieces, places]: of each piece of the stream that stands at every place, its bits there.

    Window w has piece w + p of the stream at its place p.
    """
    places = np.arange(spent.shape[1])
    pieces = np.arange(len(places) - 1, len(spent))
    return spent[pieces[:, None] - places, places]


def _spent(
    n_ctx: int, forward: Callable, tokens: np.ndarray, shift: int, batch: int, bar: bool
) -> np.ndarray:
    """Bits of each window's pieces of `shift` tokens, float64 [windows, n_ctx / shift]."""

    @tf.function(reduce_retracing=True)
    def of_windows(windows):
        found = bits(forward(windows), windows)
        return tf.reduce_sum(tf.reshape(found, [-1, n_ctx // shift, shift]), axis=2)

    starts = np.arange(0, len(tokens) - n_ctx + 1, shift)
    spent = []
    for part, rows in batches(len(starts), batch, bar):
        windows = tokens[starts[part, None] + np.arange(n_ctx)]
        spent.append(of_windows(tf.constant(windows[rows], tf.int32)).numpy()[: len(windows)])
    return np.concatenate(spent).astype(np.float64)


def _rows(pieces: np.ndarray, windows: int, shift: int, contexts: list[int]) -> list[Row]:
    """pieces: bits per token [pieces, places]."""
    rows, before = [], None
    for context in contexts:
        own = pieces[:, context // shift :].mean(axis=1)
        less = () if before is None else _mean(before - own, pieces.shape[1])
        rows.append(Row(*_mean(own, pieces.shape[1]), windows, windows, *less))
        before = own
    return rows


def _mean(values: np.ndarray, places: int) -> tuple[float, float]:
    """With its standard error, of stretches as long as a window: neighbouring pieces are of one article."""
    count = max(1, len(values) // places)
    means = [part.mean() for part in np.array_split(values, count)]
    return float(values.mean()), float(np.std(means, ddof=1) / count**0.5) if count > 1 else 0.0
