"""All gradients in one pass, for plans where every key is seen in one row tile only (residue classes, chunks).

5 products and 1 exponential an element instead of 7 and 2, every tensor moved once, half the launches.
"""

import triton
import triton.language as tl

from .primitives import LOG2_E, column_rows, gathered_rows, load_rows, locate, mask_words, store_rows, visible


@triton.jit
def attention_whole_gradient(
    q, k, v, out, lse, dout, dlse, dq, dk, dv, head_index, order, head_tiles, rows, row_count, offset, full,
    columns, mask, masks, scale, scale_log2, heads, query_time, key_time, tiles,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, HEAD_PAD: tl.constexpr, VALUE_PAD: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, GRANULE: tl.constexpr, SPLIT: tl.constexpr, HEAVIEST_FIRST: tl.constexpr,
    PERMUTED: tl.constexpr, SHARED: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq of one row tile of queries, dk and dv of all the keys it sees."""
    batch, head, tile, exists = locate(head_index, head_tiles, heads, tiles, SHARED, HEAVIEST_FIRST)
    if not exists:
        return
    stride = tl.load(order + head) if PERMUTED else 1
    start = tl.load(offset + tile)
    last = tl.load(offset + tile + 1)
    unmasked = start + tl.load(full + tile)
    stored = tl.arange(0, M) < tl.load(row_count + tile)
    own = gathered_rows(rows, tile, tile + 1, query_time, stride, M, GRANULE, PERMUTED)

    query_row = batch * query_time * heads + head
    key_row = batch * key_time * heads + head
    statistics = (batch * heads + head) * query_time + own
    gradients = load_rows(dout + query_row * VALUE_DIM, own, stored, heads, VALUE_DIM, VALUE_PAD, WIDE)
    outputs = load_rows(out + query_row * VALUE_DIM, own, stored, heads, VALUE_DIM, VALUE_PAD, WIDE)
    queries = load_rows(q + query_row * HEAD_DIM, own, stored, heads, HEAD_DIM, HEAD_PAD, WIDE)
    row_lse = tl.load(lse + statistics, mask=stored, other=0.0) * LOG2_E
    row_dlse = tl.load(dlse + statistics, mask=stored, other=0.0)
    # The first keys are on their way before anything waits.
    lanes, real = column_rows(columns, start, last, key_time, stride, N, GRANULE, PERMUTED)
    keys = load_rows(k + key_row * HEAD_DIM, lanes, real, heads, HEAD_DIM, HEAD_PAD, WIDE)
    values = load_rows(v + key_row * VALUE_DIM, lanes, real, heads, VALUE_DIM, VALUE_PAD, WIDE)
    low, high = mask_words(masks, tl.load(mask + start, mask=start < last, other=0), start >= unmasked, M, N)

    delta = tl.sum(gradients.to(tl.float32) * outputs.to(tl.float32), 1) - row_dlse
    gradient = tl.zeros((M, HEAD_PAD), tl.float32)
    dk += key_row * HEAD_DIM
    dv += key_row * VALUE_DIM
    for j in range(start, last):
        s = tl.dot(queries, keys.T, input_precision=PRECISION)
        dp = tl.dot(gradients, values.T, input_precision=PRECISION)
        seen = visible(low, high, M, N)
        p = tl.where(seen, tl.exp2(s * scale_log2 - row_lse[:, None]), 0.0)
        ds = tl.where(seen, p * (dp - delta[:, None]), 0.0).to(keys.dtype)
        value_gradient = tl.dot(p.to(gradients.dtype).T, gradients, input_precision=PRECISION)
        store_rows(dv, lanes, real, heads, value_gradient, VALUE_DIM, VALUE_PAD, WIDE)
        key_gradient = tl.dot(ds.T, queries, input_precision=PRECISION)
        store_rows(dk, lanes, real, heads, key_gradient * scale, HEAD_DIM, HEAD_PAD, WIDE)
        # Who sees a key that is NaN or infinite has ds NaN; nobody else shall.
        finite = tl.where(tl.abs(keys) < float("inf"), keys, 0.0)
        gradient = tl.dot(ds, finite, gradient, input_precision=PRECISION)
        lanes, real = column_rows(columns, j + 1, last, key_time, stride, N, GRANULE, PERMUTED)
        keys = load_rows(k + key_row * HEAD_DIM, lanes, real, heads, HEAD_DIM, HEAD_PAD, WIDE)
        values = load_rows(v + key_row * VALUE_DIM, lanes, real, heads, VALUE_DIM, VALUE_PAD, WIDE)
        number = tl.load(mask + j + 1, mask=j + 1 < last, other=0)
        low, high = mask_words(masks, number, (j + 1 >= unmasked) & (j + 1 < last), M, N)
    store_rows(dq + query_row * HEAD_DIM, own, stored, heads, gradient * scale, HEAD_DIM, HEAD_PAD, WIDE)
