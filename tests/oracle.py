"""Attention in float64 NumPy over a dense mask: what all kernels are held against."""

from __future__ import annotations

import numpy as np


def attention(q, k, v, visible, scale, dout=None, dlse=None):
    """(out, lse), or (out, lse, dq, dk, dv) where dout is given.

    q: [batch, time, heads * d]; k: [batch, key_time, kv_heads * d]; v: [batch, key_time, kv_heads * e]; visible: bool
    [heads, query_time, key_time], for all batch rows or with an axis of them in front. Query head h reads key head
    h // (heads / kv_heads).
    """
    heads = visible.shape[-3]
    group = q.shape[2] // k.shape[2]
    q, k, v = _split(q, heads), *(np.repeat(_split(x, heads // group), group, axis=1) for x in (k, v))
    s = np.where(visible, scale * q @ k.swapaxes(2, 3), -np.inf)
    top = s.max(3, keepdims=True, initial=-np.inf)
    p = np.exp(s - np.where(np.isneginf(top), 0, top))
    total = p.sum(3, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = (np.where(np.isneginf(top), 0, top) + np.log(total))[..., 0]
    p /= np.where(total == 0, 1, total)
    out = p @ v
    if dout is None:
        return _join(out), lse
    dout = _split(dout, heads)
    ds = p * (dout @ v.swapaxes(2, 3) - (dout * out).sum(3, keepdims=True))
    if dlse is not None:
        ds += p * np.asarray(dlse, np.float64)[..., None]
    dq, dk, dv = scale * ds @ k, scale * ds.swapaxes(2, 3) @ q, p.swapaxes(2, 3) @ dout
    dk, dv = (x.reshape(len(x), heads // group, group, *x.shape[2:]).sum(2) for x in (dk, dv))
    return _join(out), lse, _join(dq), _join(dk), _join(dv)


def dense_mask(layout, block_size, callback=None, heads=None, order=1):
    """bool [heads, query_time, key_time] from a layout and a mask callback, in tensor order."""
    layout = np.asarray(layout)
    layout = layout[None] if layout.ndim == 2 else layout
    heads, bs = heads or len(layout), block_size
    _, query_blocks, key_blocks = layout.shape
    visible = np.zeros((heads, query_blocks * bs, key_blocks * bs), bool)
    for head in range(heads):
        lut_head = head if len(layout) > 1 else 0
        for number, (i, j) in enumerate(np.argwhere(layout[lut_head])):
            mask = callback((bs, bs), lut_head, i, j, number) if callback else True
            visible[head, i * bs : (i + 1) * bs, j * bs : (j + 1) * bs] = mask
    for head, stride in enumerate(np.broadcast_to(order, heads)):
        moved = np.zeros_like(visible[head])
        moved[np.ix_(plan_order(visible.shape[1], stride), plan_order(visible.shape[2], stride))] = visible[
            head
        ]
        visible[head] = moved
    return visible


def plan_order(time, stride):
    """The tensor row of each plan row."""
    row = np.arange(time)
    return row % (time // stride) * stride + row // (time // stride)


def assert_close(name, got, want, epsilon, slack=8):
    """Every entry within `slack` roundings of the largest; NaN and infinity in the same places, and alike."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, f"{name}: shape {got.shape}, not {want.shape}"
    finite = np.isfinite(want)
    np.testing.assert_array_equal(got[~finite], want[~finite], err_msg=name)
    assert np.isfinite(got[finite]).all(), (
        f"{name}: {(~np.isfinite(got[finite])).sum()} entries are not finite"
    )
    if finite.any():
        largest = np.abs(want[finite]).max()
        error, limit = np.abs(got[finite] - want[finite]).max(), slack * epsilon * max(largest, 1e-3)
        assert error <= limit, (
            f"{name}: off by {error:.3g}, allowed {limit:.3g} (largest entry {largest:.3g})"
        )


def _split(x, heads):
    batch, time, width = x.shape
    return np.asarray(x, np.float64).reshape(batch, time, heads, width // heads).transpose(0, 2, 1, 3)


def _join(x):
    batch, heads, time, d = x.shape
    return x.transpose(0, 2, 1, 3).reshape(batch, time, heads * d)
