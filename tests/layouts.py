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


def dense(query_blocks, key_blocks=None, heads=1):
    """A layout of all blocks."""
    return np.ones((heads, query_blocks, key_blocks or query_blocks), bool)
