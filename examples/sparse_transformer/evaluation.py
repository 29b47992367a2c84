"""Bits per dim of a model over a split of its data (paper, Tables 1 and 3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from . import checkpoint, data, flat, pretrained, runs
from .model import SparseTransformer, bits


def load_model(folder: Path, averaged: bool = True) -> SparseTransformer:
    """The model of a run, or of a name in ../pretrained, with the moving averages of its weights or the weights
    themselves, which no pretrained model has."""
    folder = runs.open(folder)
    config = runs.read_config(folder)
    if not tf.config.list_physical_devices("GPU"):  # a CPU computes with halves many times slower
        config = replace(config, precision="float32")
    arrays = pretrained.read(folder) if averaged else None
    arrays = arrays or checkpoint.read(folder)
    if arrays is None:
        raise ValueError(f"{folder} holds no checkpoint yet")
    model = SparseTransformer(config)
    try:
        set_weights(model, arrays, averaged)
    except (KeyError, ValueError, tf.errors.OpError) as error:
        raise ValueError(f"{folder / checkpoint.NAME} belongs to another model: {error}") from error
    return model


def set_weights(model: SparseTransformer, variables: dict, averaged: bool = True) -> None:
    """Gives the model what a training's variables hold, by their names."""
    vectors = [variables[f"adam_w/{name}_average" if averaged else name] for name in flat.NAMES]
    for weight, value in zip(model.trainable_variables, flat.unpack(model, vectors), strict=True):
        weight.assign(value)


def windows(length: int, n_ctx: int, min_context: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts of the windows over a stream, and the place in each from which tokens are scored, once each.

    A window moves by n_ctx - min_context, so that what it scores has min_context tokens before it (section 7.2,
    Table 3). The paper does not say what becomes of the stream's first tokens, which have no such context: here
    the first window scores all of its own.
    """
    ends = np.append(np.arange(n_ctx, length, n_ctx - min_context), length)
    return ends - n_ctx, n_ctx - np.diff(ends, prepend=0)


def batches(count: int, batch: int, bar: bool = False) -> Iterator[tuple[slice, np.ndarray]]:
    """The part of `count` windows that a batch has, and the rows of that part to compute: a last batch that is not
    whole is filled up with its own, as XLA would compile the model anew for its shape."""
    for at in tqdm(range(0, count, batch), desc="evaluation", unit="batch", leave=False, disable=not bar):
        yield slice(at, at + batch), np.resize(np.arange(min(batch, count - at)), min(batch, count))


def usual_limit(n_ctx: int) -> int:
    """How many windows score a model where nobody says: a million tokens, in 16 to 256 windows."""
    return int(np.clip(2**20 // n_ctx, 16, 256))


@dataclass(frozen=True)
class Score:
    bits: float  # per token
    error: float  # the mean's standard error, of windows drawn from the split
    windows: int
    total: int  # windows there are

    def row(self, min_context: int = 0) -> dict:
        """As score files have it."""
        return {"min_context": min_context, **asdict(self)}

    def __str__(self) -> str:
        whole = "all" if self.windows == self.total else f"{self.windows:,} of"
        over = "the only window" if self.total == 1 else f"{whole} {self.total:,} windows"
        # A single window says nothing of how others differ.
        error = f" +- {self.error:.4f}" if self.windows > 1 else ""
        return f"{self.bits:.4f}{error} bits per dim over {over}"


class Scorer:
    """Scores a model over windows; `forward(tokens, *state)` gives its logits, and is traced once."""

    def __init__(self, n_ctx: int, forward: Callable):
        self.n_ctx = n_ctx

        @tf.function(reduce_retracing=True)
        def score(tokens, first, *state):
            scored = tf.cast(tf.range(n_ctx) >= first[:, None], tf.float32)
            spent = bits(forward(tokens, *state), tokens) * scored
            return tf.reduce_sum(spent, axis=1), tf.reduce_sum(scored, axis=1)

        self.score = score

    def __call__(
        self,
        source,
        state=(),
        min_context: int = 0,
        limit: int | None = None,
        batch: int = 1,
        bar: bool = False,
    ) -> Score:
        """Over the split, or over `limit` windows spread evenly over it."""
        starts, first = self._windows(source, min_context)
        total = len(starts)
        if limit is not None and limit < total:
            chosen = np.linspace(0, total - 1, limit).astype(int)
            starts, first = starts[chosen], first[chosen]
        spent, counted = [], []
        for part, rows in batches(len(starts), batch, bar):
            if isinstance(source, data.Stream):
                tokens = source.tokens[starts[part, None] + np.arange(self.n_ctx)]
            else:
                tokens = source.examples(starts[part], 0)
            sums = self.score(
                tf.constant(tokens[rows], tf.int32), tf.constant(first[part][rows], tf.int32), *state
            )
            spent.append(sums[0].numpy()[: len(tokens)].astype(np.float64))
            counted.append(sums[1].numpy()[: len(tokens)].astype(np.float64))
        return _score(np.concatenate(spent), np.concatenate(counted), total)

    def _windows(self, source, min_context: int) -> tuple[np.ndarray, np.ndarray]:
        if not 0 <= min_context < self.n_ctx:
            raise ValueError(
                f"--min-context {min_context} must lie between 0 and the model's context less one, "
                f"{self.n_ctx - 1}"
            )
        if isinstance(source, data.Stream):
            return windows(len(source.tokens), self.n_ctx, min_context)
        if min_context:
            raise ValueError(f"--min-context {min_context}: an image is a context of its own; leave it out")
        return np.arange(source.size), np.zeros(source.size, int)


def _score(spent: np.ndarray, counted: np.ndarray, total: int) -> Score:
    """From the bits of each window and the tokens scored in it."""
    mean = spent.sum() / counted.sum()
    count = len(spent)
    error = np.sqrt(np.sum((spent - mean * counted) ** 2) * count / max(1, count - 1)) / counted.sum()
    return Score(float(mean), float(error), count, total)


def evaluate(model: SparseTransformer, source, **kwargs) -> Score:
    """The model's bits per token over a split; what else there is to say as in Scorer."""
    return Scorer(model.config.n_ctx, model)(source, **kwargs)


def mean_bits(
    model: SparseTransformer, source, min_context: int = 0, limit: int | None = None, batch: int = 1
) -> float:
    """Bits per token over the split, or over `limit` windows spread evenly over it."""
    return evaluate(model, source, min_context=min_context, limit=limit, batch=batch).bits
