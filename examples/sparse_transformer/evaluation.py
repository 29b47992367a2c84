"""Bits per dim of a model over a split of its data (paper, Tables 1 and 3)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from . import checkpoint, data, flat
from .model import SparseTransformer, bits


def load_model(folder: Path, averaged: bool = True) -> SparseTransformer:
    """The model of a run, with the moving averages of its weights or with the weights themselves."""
    config = checkpoint.read_config(folder)
    arrays = checkpoint.read(folder)
    if arrays is None:
        raise ValueError(f"{folder} holds no checkpoint yet")
    model = SparseTransformer(config)
    set_weights(model, arrays, averaged)
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


def mean_bits(
    model: SparseTransformer, source, min_context: int = 0, limit: int | None = None, batch: int = 1
) -> float:
    """Bits per token over the split, or over `limit` windows spread evenly over it."""
    n_ctx = model.config.n_ctx
    if not 0 <= min_context < n_ctx:
        raise ValueError(
            f"--min-context {min_context} must lie between 0 and the model's context less one, {n_ctx - 1}"
        )
    if isinstance(source, data.Stream):
        starts, first = windows(len(source.tokens), n_ctx, min_context)
    elif min_context:
        raise ValueError(f"--min-context {min_context}: an image is a context of its own; leave it out")
    else:
        starts, first = np.arange(source.size), np.zeros(source.size, int)
    if limit is not None and limit < len(starts):
        chosen = np.linspace(0, len(starts) - 1, limit).astype(int)
        starts, first = starts[chosen], first[chosen]

    @tf.function(input_signature=[tf.TensorSpec([None, n_ctx], tf.int32), tf.TensorSpec([None], tf.int32)])
    def score(tokens, first):
        scored = tf.cast(tf.range(n_ctx) >= first[:, None], tf.float32)
        return tf.reduce_sum(bits(model(tokens), tokens) * scored), tf.reduce_sum(scored)

    total = count = 0.0
    for at in tqdm(range(0, len(starts), batch), desc="evaluation", unit="batch", leave=False):
        part = slice(at, at + batch)
        if isinstance(source, data.Stream):
            tokens = source.tokens[starts[part, None] + np.arange(n_ctx)]
        else:
            tokens = source.examples(starts[part], 0)
        t, c = score(tokens.astype(np.int32), first[part].astype(np.int32))
        total += float(t)
        count += float(c)
    return total / count
