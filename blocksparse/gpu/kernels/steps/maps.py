"""A linear map of one row a batch row, with what stands before and behind it: a decoding step's products."""

import triton
import triton.language as tl

from .dependent import begin, wait


@triton.jit
def step_map(
    x, sums, norm, weight, bias, out,
    BATCH: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr, VALUE: tl.constexpr, PARTS: tl.constexpr,
    NORM: tl.constexpr, BIAS: tl.constexpr, GELU: tl.constexpr, ADD: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out = x W^T + bias, for COLUMNS outputs and ROWS rows of the batch.

    x [BATCH, IN] is of the weights' dtype; normalised first where NORM; PARTS > 0: it is what step_attention left.
    The weights do not depend on the kernels before, so one row loads its share of them before it waits for those.
    """
    begin(PDL)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    k = tl.arange(0, DEPTH)
    if BIAS:
        shift = tl.load(bias + column, mask=column < OUT, other=0.0).to(tl.float32)
    if ROWS == 1:
        inside = (column < OUT)[:, None] & (k < IN)[None, :]
        held = tl.load(weight + column[:, None] * IN + k[None, :], mask=inside, other=0.0)
        if NORM:
            gamma, beta, epsilon = _norm(norm, k, IN)
        wait(PDL)
        row = tl.program_id(1)
        given = _read(x, sums, row, k, k < IN, IN, VALUE, PARTS)
        if NORM:
            given = tl.where(k < IN, given - tl.load(x + row * IN).to(tl.float32), 0.0)
            total, squares = tl.reduce((given, given * given), 0, _both)
            mean = total / IN
            variance = tl.maximum(squares / IN - mean * mean, 0.0)
            given = (given - mean) * tl.rsqrt(variance + epsilon) * gamma + beta
        given = given.to(weight.dtype.element_ty).to(tl.float32)
        total = tl.sum(held.to(tl.float32) * given[None, :], 1)
        at = row * OUT + column
        stored = column < OUT
    else:
        wait(PDL)
        row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
        if NORM:
            mean, scale = _statistics(x, norm, row, BATCH, IN, ROWS, DEPTH)
        total = tl.zeros([ROWS, COLUMNS], tl.float32)
        for first in range(0, IN, DEPTH):
            at_k = first + k
            inside = (column < OUT)[None, :] & (at_k < IN)[:, None]
            held = tl.load(weight + column[None, :] * IN + at_k[:, None], mask=inside, other=0.0)
            known = (row < BATCH)[:, None] & (at_k < IN)[None, :]
            given = _read(x, sums, row[:, None], at_k[None, :], known, IN, VALUE, PARTS)
            if NORM:
                gamma, beta, _ = _norm(norm, at_k, IN)
                given = (given - mean[:, None]) * scale[:, None] * gamma[None, :] + beta[None, :]
            total = tl.dot(given.to(weight.dtype.element_ty), held, total, input_precision=PRECISION)
        at = row[:, None] * OUT + column[None, :]
        stored = (row < BATCH)[:, None] & (column < OUT)[None, :]
    if BIAS:
        total += shift if ROWS == 1 else shift[None, :]
    if GELU:
        total = total / (1.0 + tl.exp(-1.702 * total))
    if ADD:  # each element is read and written by one program alone
        total += tl.load(out + at, mask=stored, other=0.0).to(tl.float32)
    rounded = total.to(weight.dtype.element_ty)  # logits are float32, of a product in the weights' dtype
    tl.store(out + at, rounded.to(out.dtype.element_ty), mask=stored)


@triton.jit
def _both(total, squares, more, more_squares):
    return total + more, squares + more_squares


@triton.jit
def _norm(norm, k, IN: tl.constexpr):
    """gamma and beta at k, and epsilon: a norm's numbers lie one behind the other."""
    gamma = tl.load(norm + k, mask=k < IN, other=0.0)
    beta = tl.load(norm + IN + k, mask=k < IN, other=0.0)
    return gamma, beta, tl.load(norm + 2 * IN)


@triton.jit
def _statistics(x, norm, row, BATCH: tl.constexpr, IN: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr):
    """Mean and 1 / deviation of the rows of x, in one pass over x less its first column, of the deviations' size."""
    origin = tl.load(x + row * IN, mask=row < BATCH, other=0.0).to(tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    squares = tl.zeros([ROWS], tl.float32)
    for first in range(0, IN, DEPTH):
        k = first + tl.arange(0, DEPTH)
        inside = (row < BATCH)[:, None] & (k < IN)[None, :]
        given = tl.load(x + row[:, None] * IN + k[None, :], mask=inside, other=0.0).to(tl.float32)
        given = tl.where(inside, given - origin[:, None], 0.0)
        total += tl.sum(given, 1)
        squares += tl.sum(given * given, 1)
    mean = total / IN
    variance = tl.maximum(squares / IN - mean * mean, 0.0)
    return origin + mean, tl.rsqrt(variance + tl.load(norm + 2 * IN))


@triton.jit
def _read(x, sums, row, k, inside, IN: tl.constexpr, VALUE: tl.constexpr, PARTS: tl.constexpr):
    """x[row, k] in float32. PARTS above 1: the softmax over all keys, from the sums over each part of them."""
    if PARTS <= 1:
        found = tl.load(x + row * IN + k, mask=inside, other=0.0).to(tl.float32)
    else:
        head = (row * (IN // VALUE) + k // VALUE) * PARTS
        top = tl.load(sums + head * 2, mask=inside, other=0.0)
        for part in tl.static_range(1, PARTS):
            top = tl.maximum(top, tl.load(sums + (head + part) * 2, mask=inside, other=0.0))
        found = tl.zeros(top.shape, tl.float32)
        total = tl.zeros(top.shape, tl.float32)
        for part in tl.static_range(PARTS):
            share = tl.exp2(tl.load(sums + (head + part) * 2, mask=inside, other=0.0) - top)
            total += share * tl.load(sums + (head + part) * 2 + 1, mask=inside, other=0.0)
            found += share * tl.load(x + (head + part) * VALUE + k % VALUE, mask=inside, other=0.0)
        found = tl.where(total > 0, found / tl.where(total > 0, total, 1.0), 0.0)
    return found
