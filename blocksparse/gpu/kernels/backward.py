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
    hiding,
    key_extent,
    load_places,
    load_rows,
    locate,
    mask_words,
    put_rows,
    query_extent,
    reader_rows,
    row_tile,
    shown,
    visible,
)


@triton.jit
def gather_query_gradient(
    q, dout, lse, delta, k, v, tiles, first, last, dq, scale_log2, heads, flags,
    MASKED: tl.constexpr, FINITE: tl.constexpr,
):  # fmt: skip
    """dq + ds k over column tiles first .. last; MASKED: whether any of them has a mask.

    FINITE takes NaN and infinite keys as 0 in the product with ds: 0 * NaN would reach the queries that do not see
    them, and those that do have NaN in ds already. Row and mask numbers are loaded ahead, as in the forward pass.
    """
    rows = gathered_rows(tiles.columns, first, last, tiles.extent, tiles.stride, flags.N, flags)
    if MASKED:
        wanted = (first >= tiles.unmasked) & (first < last)  # a plan need not have any mask
        low, high = mask_words(tiles.masks, tl.load(tiles.mask + first, mask=wanted, other=0), wanted, flags)
        number = tl.load(tiles.mask + first + 1, mask=first + 1 < last, other=0)
    for j in range(first, last):
        keys = gather(k, rows, heads, flags.QK)
        values = gather(v, rows, heads, flags.VO)
        rows = gathered_rows(tiles.columns, j + 1, last, tiles.extent, tiles.stride, flags.N, flags)
        s = tl.dot(q, keys.T, input_precision=flags.PRECISION)
        dp = tl.dot(dout, values.T, input_precision=flags.PRECISION)
        p = tl.exp2(s * scale_log2 - lse[:, None])
        # p is masked and not ds: a select in front of a rounding is moved behind it, onto packed pairs, and takes 8
        # instructions an element in place of 3 (benchmarks/LOG.md, section 12).
        if MASKED:
            seen = visible(low, high, flags)
            p = tl.where(seen, p, 0.0)
            low, high = mask_words(tiles.masks, number, (j + 1 >= tiles.unmasked) & (j + 1 < last), flags)
            number = tl.load(tiles.mask + j + 2, mask=j + 2 < last, other=0)
        ds = p * (dp - delta[:, None])
        if FINITE:
            ds = tl.where(seen, ds, 0.0)
            keys = tl.where(tl.abs(keys) < float("inf"), keys, 0.0)
        dq = tl.dot(ds.to(keys.dtype), keys, dq, input_precision=flags.PRECISION)
    return dq


@triton.jit
def attention_query_gradient(
    q, k, v, out, lse, dout, dlse, delta, dq, plan, scale, scale_log2, sizes, flags: tl.constexpr
):
    """delta and dq of one row tile of queries."""
    batch, head, part, exists = locate(plan, sizes, flags)
    if not exists:
        return
    heads = sizes.heads
    tiles, own, stored = row_tile(
        plan, sizes, batch, head, part, query_extent(sizes, flags), key_extent(sizes, flags), flags
    )

    query_row = batch * sizes.query_time * heads + head
    statistics = (batch * heads + head) * sizes.query_time + own
    gradients = load_rows(dout + query_row * flags.VO.DIM, own, stored, heads, flags.VO)
    outputs = load_rows(out + query_row * flags.VO.DIM, own, stored, heads, flags.VO)
    row_delta = tl.sum(gradients.to(tl.float32) * outputs.to(tl.float32), 1)
    row_delta -= tl.load(dlse + statistics, mask=stored, other=0.0)
    tl.store(delta + statistics, row_delta, mask=stored)
    row_lse = tl.load(lse + statistics, mask=stored, other=0.0) * LOG2_E

    queries = load_rows(q + query_row * flags.QK.DIM, own, stored, heads, flags.QK)
    key_heads = heads // flags.GROUP
    k += (batch * sizes.key_time * key_heads + head // flags.GROUP) * flags.QK.DIM
    v += (batch * sizes.key_time * key_heads + head // flags.GROUP) * flags.VO.DIM

    gradient = tl.zeros((flags.M, flags.QK.PAD), tl.float32)
    if flags.SPLIT:
        gradient = gather_query_gradient(
            queries, gradients, row_lse, row_delta, k, v, tiles, 0, tiles.unmasked,
            gradient, scale_log2, key_heads, flags, False, False,
        )  # fmt: skip
    gradient = gather_query_gradient(
        queries, gradients, row_lse, row_delta, k, v, tiles, tiles.unmasked if flags.SPLIT else 0, tiles.count,
        gradient, scale_log2, key_heads, flags, True, False,
    )  # fmt: skip
    # A NaN key in a tile makes dq NaN in all its rows, by 0 * NaN, also in those that do not see it. Asking for it in
    # the loop would cost every call; so a tile whose dq came out NaN is computed once more, with FINITE.
    if tl.max(tl.max((gradient != gradient).to(tl.int32), 1), 0) != 0:
        gradient = gather_query_gradient(
            queries, gradients, row_lse, row_delta, k, v, tiles, 0, tiles.count,
            tl.zeros((flags.M, flags.QK.PAD), tl.float32), scale_log2, key_heads, flags, True, True,
        )  # fmt: skip
    put_rows(dq + query_row * flags.QK.DIM, own, stored, gradient * scale, heads, flags.QK, flags.JOINED)


@triton.jit
def query_rows(tiles, j, last, heads, flags):
    """reader_rows; where a key head has one reader one vector, which is both."""
    if flags.GROUP == 1:
        rows = gathered_rows(tiles.columns, j, last, tiles.extent, tiles.stride, flags.N, flags)
    else:
        rows = reader_rows(tiles.columns, j, last, tiles.extent, tiles.stride, heads, flags)
    return rows


@triton.jit
def gather_key_gradient(
    k, v, q, dout, lse, delta, tiles, first, last, dk, dv, scale_log2, heads, flags,
    MASKED: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """(dk + ds^T q, dv + p^T dout) over tiles first .. last of queries; s, p, dp, ds stand as [keys, queries].

    heads: of keys. MASKED: whether any of the tiles has a mask. AHEAD: row numbers are loaded one tile ahead.
    """
    if AHEAD:
        ahead = query_rows(tiles, first, last, heads, flags)
    if MASKED:
        wanted = (first >= tiles.unmasked) & (first < last)
        low, high = mask_words(tiles.masks, tl.load(tiles.mask + first, mask=wanted, other=0), wanted, flags)
        number = tl.load(tiles.mask + first + 1, mask=first + 1 < last, other=0)
    for j in range(first, last):
        if AHEAD:
            found = ahead
            ahead = query_rows(tiles, j + 1, last, heads, flags)
        else:
            found = query_rows(tiles, j, last, heads, flags)
        if flags.GROUP == 1:
            rows, places, row_heads = found, found, heads
        else:
            rows, places, row_heads = found[0], found[1], 1
        queries = gather(q, rows, row_heads, flags.QK)
        s = tl.dot(k, queries.T, input_precision=flags.PRECISION) * scale_log2
        s -= (load_places(lse, places, flags) * LOG2_E)[None, :]
        gradients = gather(dout, rows, row_heads, flags.VO)
        dp = (
            tl.dot(v, gradients.T, input_precision=flags.PRECISION)
            - load_places(delta, places, flags)[None, :]
        )
        if MASKED:
            seen = hiding(low, high, flags)
            low, high = mask_words(tiles.masks, number, (j + 1 >= tiles.unmasked) & (j + 1 < last), flags)
            number = tl.load(tiles.mask + j + 2, mask=j + 2 < last, other=0)
        p = tl.exp2(s)
        ds = p * dp
        # Both are masked: where a query sees some NaN key its lse and delta are NaN, and with them its p and ds for all
        # keys, also for those that it does not see.
        if MASKED:
            p = shown(p, seen)
            ds = shown(ds, seen)
        dv = tl.dot(p.to(gradients.dtype), gradients, dv, input_precision=flags.PRECISION)
        dk = tl.dot(ds.to(queries.dtype), queries, dk, input_precision=flags.PRECISION)
    return dk, dv


@triton.jit
def attention_key_gradient(
    q, k, v, lse, dout, delta, dk, dv, plan, scale, scale_log2, sizes, flags: tl.constexpr
):
    """dk and dv of one row tile of keys; its column tiles are queries."""
    batch, head, part, exists = locate(plan, sizes, flags)
    if not exists:
        return
    heads = sizes.heads
    tiles, own, stored = row_tile(
        plan, sizes, batch, head, part, key_extent(sizes, flags), query_extent(sizes, flags), flags
    )

    key_row = batch * sizes.key_time * heads + head
    keys = load_rows(k + key_row * flags.QK.DIM, own, stored, heads, flags.QK)
    values = load_rows(v + key_row * flags.VO.DIM, own, stored, heads, flags.VO)
    first_reader = (batch * sizes.query_time * heads + head) * flags.GROUP
    q += first_reader * flags.QK.DIM
    dout += first_reader * flags.VO.DIM
    lse += (batch * heads + head) * flags.GROUP * sizes.query_time
    delta += (batch * heads + head) * flags.GROUP * sizes.query_time

    # Row numbers that are loaded ahead keep one more tile of q and dout in shared memory. At head_dim 128 and with long
    # rows that leaves one program on a multiprocessor in place of two (benchmarks/LOG.md, section 12).
    AHEAD: tl.constexpr = flags.QK.PAD <= 64 or not flags.SPLIT
    key_gradient = tl.zeros((flags.M, flags.QK.PAD), tl.float32)
    value_gradient = tl.zeros((flags.M, flags.VO.PAD), tl.float32)
    if flags.SPLIT:
        key_gradient, value_gradient = gather_key_gradient(
            keys, values, q, dout, lse, delta, tiles, 0, tiles.unmasked, key_gradient, value_gradient, scale_log2,
            heads, flags, False, AHEAD,
        )  # fmt: skip
    key_gradient, value_gradient = gather_key_gradient(
        keys, values, q, dout, lse, delta, tiles, tiles.unmasked if flags.SPLIT else 0, tiles.count,
        key_gradient, value_gradient, scale_log2, heads, flags, True, AHEAD,
    )  # fmt: skip
    put_rows(dk + key_row * flags.QK.DIM, own, stored, key_gradient * scale, heads, flags.QK, flags.JOINED)
    put_rows(dv + key_row * flags.VO.DIM, own, stored, value_gradient, heads, flags.VO, flags.JOINED)
