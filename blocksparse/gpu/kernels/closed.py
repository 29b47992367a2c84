"""Kernels for closed plans, where every key is seen in one row tile only (residue classes, chunks).

All that a program needs from memory is asked for before it waits for any of it: its time is mostly one round trip.
"""

import triton
import triton.language as tl

from .primitives import (
    LOG2_E,
    ask_rows,
    column_rows,
    held,
    locate,
    mask_words,
    row_tile,
    store_rows,
    visible,
)


@triton.jit
def attention_closed_forward(
    q, k, v, out, lse, head_index, order, head_tiles, rows, row_count, offset, full, columns, mask, masks,
    scale_log2, heads, query_time, key_time, tiles,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, HEAD_PAD: tl.constexpr, VALUE_PAD: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, GRANULE: tl.constexpr, SPLIT: tl.constexpr, HEAVIEST_FIRST: tl.constexpr,
    PERMUTED: tl.constexpr, SHARED: tl.constexpr, SINGLE: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """attention_forward for few column tiles a row tile."""
    batch, head, tile, exists = locate(head_index, head_tiles, heads, tiles, SHARED, HEAVIEST_FIRST)
    if not exists:
        return
    stride, count, unmasked, own, stored, columns, mask = row_tile(
        order, head, rows, row_count, offset, full, columns, mask, tile, query_time, M, N, GRANULE, PERMUTED, SINGLE
    )  # fmt: skip
    seen, real = column_rows(columns, 0, count, key_time, stride, N, GRANULE, PERMUTED)

    query_row = batch * query_time * heads + head
    k += (batch * key_time * heads + head) * HEAD_DIM
    v += (batch * key_time * heads + head) * VALUE_DIM
    queries = ask_rows(q + query_row * HEAD_DIM, own, stored, heads, HEAD_DIM, HEAD_PAD, WIDE)
    keys = ask_rows(k, seen, real, heads, HEAD_DIM, HEAD_PAD, WIDE)
    values = ask_rows(v, seen, real, heads, VALUE_DIM, VALUE_PAD, WIDE)
    low, high = mask_words(masks, tl.load(mask, mask=count > 0, other=0), (0 >= unmasked) & (count > 0), M, N)
    if not SINGLE:  # numbers a tile further ahead
        next_seen, next_real = column_rows(columns, 1, count, key_time, stride, N, GRANULE, PERMUTED)
        number = tl.load(mask + 1, mask=1 < count, other=0)

    tl.debug_barrier()  # or the machine code waits for the queries before it asks for the keys
    queries = held(queries, stored, HEAD_DIM, HEAD_PAD)
    m = tl.full((M,), -float("inf"), tl.float32)
    l = tl.zeros((M,), tl.float32)
    acc = tl.zeros((M, VALUE_PAD), tl.float32)
    for j in range(count):
        keys_j = held(keys, real, HEAD_DIM, HEAD_PAD)
        values_j = held(values, real, VALUE_DIM, VALUE_PAD)
        sees = visible(low, high, M, N)
        if not SINGLE:  # the next column tile is on its way while this one is computed
            seen, real = next_seen, next_real
            keys = ask_rows(k, seen, real, heads, HEAD_DIM, HEAD_PAD, WIDE)
            values = ask_rows(v, seen, real, heads, VALUE_DIM, VALUE_PAD, WIDE)
            low, high = mask_words(masks, number, (j + 1 >= unmasked) & (j + 1 < count), M, N)
            next_seen, next_real = column_rows(columns, j + 2, count, key_time, stride, N, GRANULE, PERMUTED)
            number = tl.load(mask + j + 2, mask=j + 2 < count, other=0)
        s = tl.dot(queries, keys_j.T, input_precision=PRECISION) * scale_log2
        s = tl.where(sees, s, -float("inf"))
        top = tl.maximum(m, tl.max(s, 1))
        reference = tl.where(top == -float("inf"), 0.0, top)  # rows that have seen nothing yet
        p = tl.exp2(s - reference[:, None])
        fade = tl.exp2(m - reference)
        l = l * fade + tl.sum(p, 1)
        acc = tl.dot(p.to(values_j.dtype), values_j, acc * fade[:, None], input_precision=PRECISION)
        m = top

    empty = l == 0.0
    l = tl.where(empty, 1.0, l)
    store_rows(out + query_row * VALUE_DIM, own, stored, heads, acc / l[:, None], VALUE_DIM, VALUE_PAD, WIDE)
    log_sum = tl.where(empty, -float("inf"), (m + tl.log2(l)) / LOG2_E)
    tl.store(lse + (batch * heads + head) * query_time + own, log_sum, mask=stored)


@triton.jit
def attention_whole_gradient(
    q, k, v, out, lse, dout, dlse, dq, dk, dv, head_index, order, head_tiles, rows, row_count, offset, full,
    columns, mask, masks, scale, scale_log2, heads, query_time, key_time, tiles,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, HEAD_PAD: tl.constexpr, VALUE_PAD: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, GRANULE: tl.constexpr, SPLIT: tl.constexpr, HEAVIEST_FIRST: tl.constexpr,
    PERMUTED: tl.constexpr, SHARED: tl.constexpr, SINGLE: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq of one row tile of queries, dk and dv of all the keys it sees: 5 products where two passes need 7.

    SINGLE: every row tile has one column tile, numbered as itself.
    """
    batch, head, tile, exists = locate(head_index, head_tiles, heads, tiles, SHARED, HEAVIEST_FIRST)
    if not exists:
        return
    stride, count, unmasked, own, stored, columns, mask = row_tile(
        order, head, rows, row_count, offset, full, columns, mask, tile, query_time, M, N, GRANULE, PERMUTED, SINGLE
    )  # fmt: skip
    seen, real = column_rows(columns, 0, count, key_time, stride, N, GRANULE, PERMUTED)

    query_row = batch * query_time * heads + head
    key_row = batch * key_time * heads + head
    statistics = (batch * heads + head) * query_time + own
    k += key_row * HEAD_DIM
    v += key_row * VALUE_DIM
    gradients = ask_rows(dout + query_row * VALUE_DIM, own, stored, heads, VALUE_DIM, VALUE_PAD, WIDE)
    outputs = ask_rows(out + query_row * VALUE_DIM, own, stored, heads, VALUE_DIM, VALUE_PAD, WIDE)
    queries = ask_rows(q + query_row * HEAD_DIM, own, stored, heads, HEAD_DIM, HEAD_PAD, WIDE)
    keys = ask_rows(k, seen, real, heads, HEAD_DIM, HEAD_PAD, WIDE)
    values = ask_rows(v, seen, real, heads, VALUE_DIM, VALUE_PAD, WIDE)
    row_lse = tl.load(lse + statistics, mask=stored, other=0.0) * LOG2_E
    delta = tl.load(dlse + statistics, mask=stored, other=0.0)
    low, high = mask_words(masks, tl.load(mask, mask=count > 0, other=0), (0 >= unmasked) & (count > 0), M, N)
    if not SINGLE:  # numbers a tile further ahead
        next_seen, next_real = column_rows(columns, 1, count, key_time, stride, N, GRANULE, PERMUTED)
        number = tl.load(mask + 1, mask=1 < count, other=0)

    gradients = held(gradients, stored, VALUE_DIM, VALUE_PAD)
    outputs = held(outputs, stored, VALUE_DIM, VALUE_PAD)
    queries = held(queries, stored, HEAD_DIM, HEAD_PAD)
    delta = tl.sum(gradients.to(tl.float32) * outputs.to(tl.float32), 1) - delta
    dk += key_row * HEAD_DIM
    dv += key_row * VALUE_DIM
    gradient = tl.zeros((M, HEAD_PAD), tl.float32)
    for j in range(count):
        keys_j = held(keys, real, HEAD_DIM, HEAD_PAD)
        values_j = held(values, real, VALUE_DIM, VALUE_PAD)
        sees = visible(low, high, M, N)
        here, exist = seen, real
        if not SINGLE:  # the next column tile is on its way while this one is computed
            seen, real = next_seen, next_real
            keys = ask_rows(k, seen, real, heads, HEAD_DIM, HEAD_PAD, WIDE)
            values = ask_rows(v, seen, real, heads, VALUE_DIM, VALUE_PAD, WIDE)
            low, high = mask_words(masks, number, (j + 1 >= unmasked) & (j + 1 < count), M, N)
            next_seen, next_real = column_rows(columns, j + 2, count, key_time, stride, N, GRANULE, PERMUTED)
            number = tl.load(mask + j + 2, mask=j + 2 < count, other=0)
        s = tl.dot(queries, keys_j.T, input_precision=PRECISION)
        dp = tl.dot(gradients, values_j.T, input_precision=PRECISION)
        p = tl.where(sees, tl.exp2(s * scale_log2 - row_lse[:, None]), 0.0)
        ds = tl.where(sees, p * (dp - delta[:, None]), 0.0).to(queries.dtype)
        value_gradient = tl.dot(p.to(gradients.dtype).T, gradients, input_precision=PRECISION)
        store_rows(dv, here, exist, heads, value_gradient, VALUE_DIM, VALUE_PAD, WIDE)
        key_gradient = tl.dot(ds.T, queries, input_precision=PRECISION)
        store_rows(dk, here, exist, heads, key_gradient * scale, HEAD_DIM, HEAD_PAD, WIDE)
        # Who sees a key that is NaN or infinite has ds NaN; nobody else shall.
        keys_j = tl.where(tl.abs(keys_j) < float("inf"), keys_j, 0.0)
        gradient = tl.dot(ds, keys_j, gradient, input_precision=PRECISION)
    store_rows(dq + query_row * HEAD_DIM, own, stored, heads, gradient * scale, HEAD_DIM, HEAD_PAD, WIDE)
