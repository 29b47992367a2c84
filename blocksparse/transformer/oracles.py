"""The three steps of attention in NumPy, block by block, with which OpenAI's package tests its operations."""

from __future__ import annotations

from typing import Any

import numpy as np


def nt_test(self: Any, A: np.ndarray, B: np.ndarray) -> np.ndarray:
    """float32 [batch, heads, blocks, bs, bs]: A_q B_k^T for each block (q, k)."""
    A, B = _blocks(self, A), _blocks(self, B)
    C = np.empty((len(A), self.heads, self.blocks, *self.blk_shape), np.float32)
    for head, block, q, k in _entries(self):
        C[:, head, block] = A[:, head, q] @ B[:, head, k].swapaxes(1, 2)
    return C


def nn_test(self: Any, A: np.ndarray, B: np.ndarray) -> np.ndarray:
    """float32 [batch, query_time, heads * d]: the sum of A_qk B_k along each block row q."""
    B = _blocks(self, B)
    C = np.zeros((*B.shape[:2], self.ctx_blks_q, *B.shape[3:]), np.float32)
    for head, block, q, k in _entries(self):
        C[:, head, q] += A[:, head, block] @ B[:, head, k]
    return _flat(C)


def tn_test(self: Any, A: np.ndarray, B: np.ndarray) -> np.ndarray:
    """float32 [batch, key_time, heads * d]: the sum of A_qk^T B_q along each block column k."""
    B = _blocks(self, B)
    C = np.zeros((*B.shape[:2], self.ctx_blks_k, *B.shape[3:]), np.float32)
    for head, block, q, k in _entries(self):
        C[:, head, k] += A[:, head, block].swapaxes(1, 2) @ B[:, head, q]
    return _flat(C)


def masked_softmax_test(
    self: Any, x: np.ndarray, scale: float = 1.0, autoregress_at_key: int | None = None
) -> np.ndarray:
    """Softmax of scale * x along each query's visible keys, shaped as x; 0 where invisible."""
    y = np.zeros_like(x)
    visible = self.active.masks[self.mask_numbers]
    if autoregress_at_key is not None:
        query, key = self.positions
        visible &= (key < autoregress_at_key) | (key <= query)
    visible = np.broadcast_to(visible, (self.heads, self.blocks, *self.blk_shape))
    for head, rows in _rows(self):
        seen = np.concatenate([visible[head, block] for block, _ in rows], axis=1)
        s = np.where(seen, scale * np.concatenate([x[:, head, block] for block, _ in rows], axis=2), -np.inf)
        top = s.max(2, keepdims=True)
        p = np.exp(s - np.where(np.isneginf(top), 0, top))
        total = p.sum(2, keepdims=True)
        p = np.split(p / np.where(total == 0, 1, total), len(rows), axis=2)
        for (block, _), part in zip(rows, p, strict=True):
            y[:, head, block] = part
    return y


def masked_softmax_grad_test(self: Any, dy: np.ndarray, y: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """The gradient of softmax(scale * x) for its output y and that output's gradient dy."""
    dx = np.zeros_like(dy)
    for head, rows in _rows(self):
        blocks = [block for block, _ in rows]
        total = (dy[:, head, blocks] * y[:, head, blocks]).sum((1, 3), keepdims=True)
        dx[:, head, blocks] = (dy[:, head, blocks] - total) * y[:, head, blocks] * scale
    return dx


def _entries(self):
    for head in range(self.heads):
        for block, (q, k) in enumerate(self.nt_list[head if self.lut_heads > 1 else 0]):
            yield head, block, q, k


def _rows(self):
    """(head, [(block, key block)]) of every query block row that has any."""
    for head in range(self.heads):
        for rows in self.nn_list[head if self.lut_heads > 1 else 0]:
            if rows:
                yield head, rows


def _blocks(self: Any, x: np.ndarray) -> np.ndarray:
    """[batch, time, heads * d] -> [batch, heads, time / bs, bs, d]"""
    return x.reshape(len(x), -1, self.blk_size, self.heads, x.shape[2] // self.heads).transpose(0, 3, 1, 2, 4)


def _flat(x: np.ndarray) -> np.ndarray:
    """The inverse of _blocks."""
    batch, heads, blocks, size, d = x.shape
    return x.transpose(0, 2, 3, 1, 4).reshape(batch, blocks * size, heads * d)
