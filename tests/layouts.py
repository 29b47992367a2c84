"""Layouts and mask callbacks that several tests share."""

import numpy as np


def causal(blk_shape, head_idx, qry_idx, key_idx, blk_idx):
    """A query sees the keys up to its own."""
    return np.tri(*blk_shape, k=(qry_idx - key_idx) * blk_shape[0], dtype=bool)


def ragged(blk_shape, head_idx, qry_idx, key_idx, blk_idx):
    """Whole, empty, half and nearly whole blocks, in no order."""
    generator = np.random.default_rng([head_idx, qry_idx, key_idx])
    return generator.random(blk_shape) < (1.0, 0.0, 0.5, 0.9)[generator.integers(4)]


def checkers(blk_shape, head_idx, qry_idx, key_idx, blk_idx):
    """Even queries see even keys, odd ones odd keys; the first block row sees nothing."""
    i, j = np.indices(blk_shape)
    return ((i + j + head_idx) % 2 == 0) & (qry_idx > 0)


SEGMENTS = ("sorted", "scattered", "one", "padded")


def segments(generator, kind, batch, query_time, key_time):
    """((query numbers, key numbers), which pairs may meet: bool [batch, 1, query_time, key_time]) of a kind."""
    numbers = [
        np.zeros((batch, time), np.int32)
        if kind == "one"
        else generator.integers(0, 4, (batch, time), np.int32)
        for time in (query_time, key_time)
    ]
    if kind != "scattered":
        numbers = [np.sort(x, axis=1) for x in numbers]
    if kind == "padded":  # on both sides, and one batch row whole
        for x in numbers:
            x[:, : generator.integers(8)] = -1
            x[:, x.shape[1] - generator.integers(1, x.shape[1]) :] = -7
        numbers[0][0] = -1
    query, key = numbers[0][:, None, :, None], numbers[1][:, None, None, :]
    return tuple(numbers), (query == key) & (query >= 0)


def dense(query_blocks, key_blocks=None, heads=1):
    """A layout of all blocks."""
    return np.ones((heads, query_blocks, key_blocks or query_blocks), bool)
