"""What several callers refuse, worded once: sizes, widths and block sizes that do not fit."""

from __future__ import annotations

from typing import Any

import numpy as np

BLOCK_SIZES = (8, 16, 32, 64, 128)


def check_positive(name: str, size: Any) -> None:
    """Raises TypeError or ValueError where size is no positive int."""
    if isinstance(size, bool) or not isinstance(size, (int, np.integer)):
        raise TypeError(f"{name} is {size!r}; it has to be a positive int")
    if size < 1:
        raise ValueError(f"{name}={size}; it has to be at least 1")


def check_heads(heads: int, name: str, width: int | None, argument: str = "heads") -> None:
    """Raises ValueError where `heads` heads, the argument's number, cannot share the width called `name` evenly, or
    nobody knows it.
    """
    if width is None:
        raise ValueError(f"{name} is not known; give the last dimension of the shape a number")
    if width % heads or not width:
        nearest = nearest_multiple(width, heads)
        raise ValueError(f"{argument}={heads} does not divide {name}, {width}; nearest width: {nearest}")


def check_kv_heads(kv_heads: Any, heads: int) -> int:
    """kv_heads, or heads where it is None. Raises TypeError or ValueError where it is no divisor of heads."""
    if kv_heads is None:
        return heads
    check_positive("kv_heads", kv_heads)
    if heads % kv_heads:
        raise ValueError(
            f"kv_heads={kv_heads} does not divide heads={heads}, of which as many have to share each key head; "
            f"nearest: {nearest_divisor(heads, kv_heads)}"
        )
    return int(kv_heads)


def check_key_width(heads: int, kv_heads: int, query_width: int, key_width: int) -> None:
    """Raises ValueError where the heads of q and of k are not equally wide."""
    wanted = query_width // heads * kv_heads
    if key_width != wanted and heads == kv_heads:
        raise ValueError(f"k has width {key_width} and q {query_width}; they have to be equal")
    if key_width != wanted:
        raise ValueError(
            f"k has width {key_width} and q {query_width}; with heads={heads} and kv_heads={kv_heads} k needs {wanted}"
        )


def check_block_size(name: str, block_size: int) -> None:
    """Raises ValueError where the argument called `name` is none of BLOCK_SIZES."""
    if block_size not in BLOCK_SIZES:
        nearest = min(BLOCK_SIZES, key=lambda size: abs(size - block_size))
        raise ValueError(f"{name}={block_size} is not offered; use one of {BLOCK_SIZES} (nearest: {nearest})")


def nearest_multiple(number: int, unit: int) -> int:
    """The positive multiple of unit that is nearest to number."""
    return max(1, round(number / unit)) * unit


def nearest_divisor(number: int, wanted: int) -> int:
    """The divisor of number that is nearest to wanted."""
    return min((d for d in range(1, number + 1) if number % d == 0), key=lambda d: abs(d - wanted))


def check_looks_back(causal: bool) -> None:
    """Raises ValueError where queries look ahead, for what computes one position after the other."""
    if not causal:
        raise ValueError(
            "causal=False lets queries see keys ahead, which a DecodeStep has not got when it is asked: give "
            "causal=True, or run blocksparse_attention_impl over all positions"
        )
