"""Batches of every step. Which examples step s trains on is a function of (seed, s) alone."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import tensorflow as tf

from .config import Config


@lru_cache(maxsize=2)
def _epoch(size: int, seed: int, epoch: int) -> tuple[np.ndarray, int]:
    rng = np.random.default_rng([seed, epoch])
    return rng.permutation(size), int(rng.integers(2**31))


def batch_at(source, step: int, batch: int, seed: int, first: int = 0, rows: int | None = None) -> np.ndarray:
    """Rows first .. first + rows - 1 of step's batch, int32 [rows, n_ctx]: every example once an epoch."""
    places = step * batch + first + np.arange(batch if rows is None else rows)
    examples = []
    for place in places:
        order, shift = _epoch(source.size, seed, int(place) // source.size)
        examples.append(source.examples(order[[place % source.size]], shift)[0])
    return np.stack(examples).astype(np.int32)


def pipeline(source, config: Config, start: int, context: tf.distribute.InputContext) -> tf.data.Dataset:
    """Endless batches [batch / replicas, n_ctx] from step `start` on: this machine's share, a replica at a time."""
    local = context.num_replicas_in_sync // context.num_input_pipelines
    rows = config.batch // context.num_replicas_in_sync

    def element(count):
        step, replica = divmod(int(count), local)
        first = (context.input_pipeline_id * local + replica) * rows
        return batch_at(source, step, config.batch, config.seed, first, rows)

    def read(count):
        return tf.ensure_shape(tf.numpy_function(element, [count], tf.int32), [rows, config.n_ctx])

    return tf.data.Dataset.counter(start * local).map(read).prefetch(2)
