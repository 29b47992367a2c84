"""Gradients in two passes over the tile plan, so that every sum has one owner and one order.

p = exp(scale q k^T - lse), dv = p^T dout, dp = dout v^T, ds = p (dp - delta), dq = scale ds k, dk = scale ds^T q with
delta = rowsum(out dout) - dlse. The query pass writes delta and dq, the key pass after it dk and dv.
"""

import triton
import triton.language as tl

from .primitives import (
    LOG2_E,
    gather,
    gathered_rows,
    load_rows,
    locate,
    mask_words,
    row_tile,
    store_rows,
    visible,
)


@triton.jit
def gather_query_gradient(
    q, dout, lse, delta, k, v, columns, mask, masks, first, last, full, dq, scale_log2, heads, time, stride,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, HEAD_PAD: tl.constexpr, VALUE_PAD: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, GRANULE: tl.constexpr, MASKED: tl.constexpr, FINITE: tl.constexpr,
    PERMUTED: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq + ds k over column tiles first .. last. FINITE silences NaN and infinite keys: who sees one has ds NaN.

    Row and mask numbers are loaded ahead, as in the forward pass.
    """
    rows = gathered_rows(columns, first, last, time, stride, N, GRANULE, PERMUTED)
    if MASKED:
        wanted = (first >= full) & (first < last)  # a plan need not have any mask
        low, high = mask_words(masks, tl.load(mask + first, mask=wanted, other=0), wanted, M, N)
        number = tl.load(mask + first + 1, mask=first + 1 < last, other=0)
    for j in range(first, last):
        keys = gather(k, rows, heads, HEAD_DIM, HEAD_PAD, WIDE)
        values = gather(v, rows, heads, VALUE_DIM, VALUE_PAD, WIDE)
        rows = gathered_rows(columns, j + 1, last, time, stride, N, GRANULE, PERMUTED)
        s = tl.dot(q, keys.T, input_precision=PRECISION)
        dp = tl.dot(dout, values.T, input_precision=PRECISION)
        p = tl.exp2(s * scale_log2 - lse[:, None])
        if MASKED:  # p, since a select of ds would be made after its rounding, of pairs taken apart
            seen = visible(low, high, M, N)
            p = tl.where(seen, p, 0.0)
            low, high = mask_words(masks, number, (j + 1 >= full) & (j + 1 < last), M, N)
            number = tl.load(mask + j + 2, mask=j + 2 < last, other=0)
        ds = p * (dp - delta[:, None])
        if FINITE:
            ds = tl.where(seen, ds, 0.0)
            keys = tl.where(tl.abs(keys) < float("inf"), keys, 0.0)
        dq = tl.dot(ds.to(keys.dtype), keys, dq, input_precision=PRECISION)
    return dq


@triton.jit
def attention_query_gradient(
    q, k, v, out, lse, dout, dlse, delta, dq, head_index, order, head_tiles, rows, row_count, offset, full,
    columns, mask, masks, scale, scale_log2, heads, query_time, key_time, tiles,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, HEAD_PAD: tl.constexpr, VALUE_PAD: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, GRANULE: tl.constexpr, SPLIT: tl.constexpr, HEAVIEST_FIRST: tl.constexpr,
    PERMUTED: tl.constexpr, SHARED: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """delta and dq of one row tile of queries."""
    batch, head, tile, exists = locate(head_index, head_tiles, heads, tiles, SHARED, HEAVIEST_FIRST)
    if not exists:
        return
    stride, count, unmasked, own, stored, columns, mask = row_tile(
        order, head, rows, row_count, offset, full, columns, mask, tile, query_time, M, N, GRANULE, PERMUTED, False
    )  # fmt: skip

    query_row = batch * query_time * heads + head
    statistics = (batch * heads + head) * query_time + own
    gradients = load_rows(dout + query_row * VALUE_DIM, own, stored, heads, VALUE_DIM, VALUE_PAD, WIDE)
    outputs = load_rows(out + query_row * VALUE_DIM, own, stored, heads, VALUE_DIM, VALUE_PAD, WIDE)
    row_delta = tl.sum(gradients.to(tl.float32) * outputs.to(tl.float32), 1)
    row_delta -= tl.load(dlse + statistics, mask=stored, other=0.0)
    tl.store(delta + statistics, row_delta, mask=stored)
    row_lse = tl.load(lse + statistics, mask=stored, other=0.0) * LOG2_E

    queries = load_rows(q + query_row * HEAD_DIM, own, stored, heads, HEAD_DIM, HEAD_PAD, WIDE)
    k += (batch * key_time * heads + head) * HEAD_DIM
    v += (batch * key_time * heads + head) * VALUE_DIM

    gradient = tl.zeros((M, HEAD_PAD), tl.float32)
    if SPLIT:
        gradient = gather_query_gradient(
            queries, gradients, row_lse, row_delta, k, v, columns, mask, masks, 0, unmasked, unmasked, gradient,
            scale_log2, heads, key_time, stride, HEAD_DIM, VALUE_DIM, HEAD_PAD, VALUE_PAD, M, N, GRANULE,
            False, False, PERMUTED, WIDE, PRECISION,
        )  # fmt: skip
    gradient = gather_query_gradient(
        queries, gradients, row_lse, row_delta, k, v, columns, mask, masks, unmasked if SPLIT else 0, count, unmasked,
        gradient, scale_log2, heads, key_time, stride, HEAD_DIM, VALUE_DIM, HEAD_PAD, VALUE_PAD, M, N, GRANULE,
        True, False, PERMUTED, WIDE, PRECISION,
    )  # fmt: skip
    # A key that is NaN reaches every row of its tiles through 0 x NaN. Rare, so noticed afterwards and done again.
    if tl.max(tl.max((gradient != gradient).to(tl.int32), 1), 0) != 0:
        gradient = gather_query_gradient(
            queries, gradients, row_lse, row_delta, k, v, columns, mask, masks, 0, count, unmasked,
            tl.zeros((M, HEAD_PAD), tl.float32), scale_log2, heads, key_time, stride,
            HEAD_DIM, VALUE_DIM, HEAD_PAD, VALUE_PAD, M, N, GRANULE, True, True, PERMUTED, WIDE, PRECISION,
        )  # fmt: skip
    store_rows(dq + query_row * HEAD_DIM, own, stored, heads, gradient * scale, HEAD_DIM, HEAD_PAD, WIDE)


@triton.jit
def gather_key_gradient(
    k, v, q, dout, lse, delta, columns, mask, masks, first, last, full, dk, dv, scale_log2, heads, time, stride,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, HEAD_PAD: tl.constexpr, VALUE_PAD: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, GRANULE: tl.constexpr, MASKED: tl.constexpr,
    AHEAD: tl.constexpr, PERMUTED: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(dk + ds^T q, dv + p^T dout) over tiles first .. last of queries; s, p, dp, ds stand as [keys, queries]."""
    if AHEAD:
        ahead = gathered_rows(columns, first, last, time, stride, N, GRANULE, PERMUTED)
    if MASKED:
        wanted = (first >= full) & (first < last)
        low, high = mask_words(masks, tl.load(mask + first, mask=wanted, other=0), wanted, M, N)
        number = tl.load(mask + first + 1, mask=first + 1 < last, other=0)
    for j in range(first, last):
        if AHEAD:
            rows = ahead
            ahead = gathered_rows(columns, j + 1, last, time, stride, N, GRANULE, PERMUTED)
        else:
            rows = gathered_rows(columns, j, last, time, stride, N, GRANULE, PERMUTED)
        queries = gather(q, rows, heads, HEAD_DIM, HEAD_PAD, WIDE)
        s = tl.dot(k, queries.T, input_precision=PRECISION) * scale_log2
        s -= (tl.load(lse + rows) * LOG2_E)[None, :]
        gradients = gather(dout, rows, heads, VALUE_DIM, VALUE_PAD, WIDE)
        dp = tl.dot(v, gradients.T, input_precision=PRECISION) - tl.load(delta + rows)[None, :]
        if MASKED:
            seen = visible(low, high, M, N)
            low, high = mask_words(masks, number, (j + 1 >= full) & (j + 1 < last), M, N)
            number = tl.load(mask + j + 2, mask=j + 2 < last, other=0)
        p = tl.exp2(s)
        ds = p * dp
        if MASKED:  # both: a query that sees a NaN key has NaN in lse and delta
            p = tl.where(seen, p, 0.0)
            ds = tl.where(seen, ds, 0.0)
        dv = tl.dot(p.to(gradients.dtype), gradients, dv, input_precision=PRECISION)
        dk = tl.dot(ds.to(queries.dtype), queries, dk, input_precision=PRECISION)
    return dk, dv


@triton.jit
def attention_key_gradient(
    q, k, v, lse, dout, delta, dk, dv, head_index, order, head_tiles, rows, row_count, offset, full,
    columns, mask, masks, scale, scale_log2, heads, query_time, key_time, tiles,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, HEAD_PAD: tl.constexpr, VALUE_PAD: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, GRANULE: tl.constexpr, SPLIT: tl.constexpr, HEAVIEST_FIRST: tl.constexpr,
    PERMUTED: tl.constexpr, SHARED: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dk and dv of one row tile of keys; its column tiles are queries."""
    batch, head, tile, exists = locate(head_index, head_tiles, heads, tiles, SHARED, HEAVIEST_FIRST)
    if not exists:
        return
    stride, count, unmasked, own, stored, columns, mask = row_tile(
        order, head, rows, row_count, offset, full, columns, mask, tile, key_time, M, N, GRANULE, PERMUTED, False
    )  # fmt: skip

    key_row = batch * key_time * heads + head
    keys = load_rows(k + key_row * HEAD_DIM, own, stored, heads, HEAD_DIM, HEAD_PAD, WIDE)
    values = load_rows(v + key_row * VALUE_DIM, own, stored, heads, VALUE_DIM, VALUE_PAD, WIDE)
    q += (batch * query_time * heads + head) * HEAD_DIM
    dout += (batch * query_time * heads + head) * VALUE_DIM
    lse += (batch * heads + head) * query_time
    delta += (batch * heads + head) * query_time

    # Row numbers ahead cost a buffer more: at head_dim 128 one program would be left where there were two.
    AHEAD: tl.constexpr = HEAD_PAD <= 64 or not SPLIT
    key_gradient = tl.zeros((M, HEAD_PAD), tl.float32)
    value_gradient = tl.zeros((M, VALUE_PAD), tl.float32)
    if SPLIT:
        key_gradient, value_gradient = gather_key_gradient(
            keys, values, q, dout, lse, delta, columns, mask, masks, 0, unmasked, unmasked,
            key_gradient, value_gradient, scale_log2, heads, query_time, stride,
            HEAD_DIM, VALUE_DIM, HEAD_PAD, VALUE_PAD, M, N, GRANULE, False, AHEAD, PERMUTED, WIDE, PRECISION,
        )  # fmt: skip
    key_gradient, value_gradient = gather_key_gradient(
        keys, values, q, dout, lse, delta, columns, mask, masks, unmasked if SPLIT else 0, count, unmasked,
        key_gradient, value_gradient, scale_log2, heads, query_time, stride,
        HEAD_DIM, VALUE_DIM, HEAD_PAD, VALUE_PAD, M, N, GRANULE, True, AHEAD, PERMUTED, WIDE, PRECISION,
    )  # fmt: skip
    store_rows(dk + key_row * HEAD_DIM, own, stored, heads, key_gradient * scale, HEAD_DIM, HEAD_PAD, WIDE)
    store_rows(dv + key_row * VALUE_DIM, own, stored, heads, value_gradient, VALUE_DIM, VALUE_PAD, WIDE)
