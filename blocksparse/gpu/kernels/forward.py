"""out = softmax(scale q k^T) v over each row tile's column tiles, and the natural log-sum-exp of every row.

Online softmax in base 2: m is the running row maximum of scale * log2(e) * q.k, l the row sum of exp2(s - m).
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
def absorb(
    q, k, v, columns, mask, masks, first, last, full, m, l, acc, scale_log2, heads, time, stride,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, HEAD_PAD: tl.constexpr, VALUE_PAD: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, GRANULE: tl.constexpr, MASKED: tl.constexpr,
    PERMUTED: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Takes column tiles first .. last into (m, l, acc).

    Row numbers are loaded one tile ahead and mask numbers two ahead, so that no load waits for the one before it.
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
        if MASKED:
            s = tl.where(visible(low, high, M, N), s, -float("inf"))
            low, high = mask_words(masks, number, (j + 1 >= full) & (j + 1 < last), M, N)
            number = tl.load(mask + j + 2, mask=j + 2 < last, other=0)
        top = tl.maximum(m, tl.max(s, 1) * scale_log2)
        reference = top
        if MASKED:  # rows that have seen nothing yet
            reference = tl.where(top == -float("inf"), 0.0, top)
        p = tl.exp2(s * scale_log2 - reference[:, None])
        fade = tl.exp2(m - reference)
        l = l * fade + tl.sum(p, 1)
        acc = tl.dot(p.to(values.dtype), values, acc * fade[:, None], input_precision=PRECISION)
        m = top
    return m, l, acc


@triton.jit
def attention_forward(
    q, k, v, out, lse, head_index, order, head_tiles, rows, row_count, offset, full, columns, mask, masks,
    scale_log2, heads, query_time, key_time, tiles,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, HEAD_PAD: tl.constexpr, VALUE_PAD: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, GRANULE: tl.constexpr, SPLIT: tl.constexpr, HEAVIEST_FIRST: tl.constexpr,
    PERMUTED: tl.constexpr, SHARED: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program a (batch, head, row tile). SPLIT: full column tiles in a loop without mask arithmetic."""
    batch, head, tile, exists = locate(head_index, head_tiles, heads, tiles, SHARED, HEAVIEST_FIRST)
    if not exists:
        return
    stride, count, unmasked, own, stored, columns, mask = row_tile(
        order, head, rows, row_count, offset, full, columns, mask, tile, query_time, M, N, GRANULE, PERMUTED, False
    )  # fmt: skip

    queries = load_rows(
        q + (batch * query_time * heads + head) * HEAD_DIM, own, stored, heads, HEAD_DIM, HEAD_PAD, WIDE
    )
    # The running maximum wants a positive scale, and -inf times zero would be NaN.
    queries = tl.where(scale_log2 < 0, -queries, queries)
    scale_log2 = tl.maximum(tl.abs(scale_log2), 2.0**-126)
    k += (batch * key_time * heads + head) * HEAD_DIM
    v += (batch * key_time * heads + head) * VALUE_DIM

    m = tl.full((M,), -float("inf"), tl.float32)
    l = tl.zeros((M,), tl.float32)
    acc = tl.zeros((M, VALUE_PAD), tl.float32)
    if SPLIT:
        m, l, acc = absorb(
            queries, k, v, columns, mask, masks, 0, unmasked, unmasked, m, l, acc, scale_log2, heads, key_time, stride,
            HEAD_DIM, VALUE_DIM, HEAD_PAD, VALUE_PAD, M, N, GRANULE, False, PERMUTED, WIDE, PRECISION,
        )  # fmt: skip
    m, l, acc = absorb(
        queries, k, v, columns, mask, masks, unmasked if SPLIT else 0, count, unmasked, m, l, acc,
        scale_log2, heads, key_time, stride,
        HEAD_DIM, VALUE_DIM, HEAD_PAD, VALUE_PAD, M, N, GRANULE, True, PERMUTED, WIDE, PRECISION,
    )  # fmt: skip

    empty = l == 0.0
    l = tl.where(empty, 1.0, l)
    store_rows(
        out + (batch * query_time * heads + head) * VALUE_DIM, own, stored, heads, acc / l[:, None],
        VALUE_DIM, VALUE_PAD, WIDE,
    )  # fmt: skip
    log_sum = tl.where(empty, -float("inf"), (m + tl.log2(l)) / LOG2_E)
    tl.store(lse + (batch * heads + head) * query_time + own, log_sum, mask=stored)
