"""out = softmax(scale q k^T) v over each row tile's column tiles, and the natural log-sum-exp of every row.

Online softmax in base 2: m is the running row maximum of scale * log2(e) * q.k, l the row sum of exp2(s - m).
"""

import triton
import triton.language as tl

from .primitives import (
    LOG2_E,
    gather,
    gathered_rows,
    join,
    key_extent,
    load_rows,
    locate,
    mask_words,
    query_extent,
    row_tile,
    store_rows,
    visible,
)


@triton.jit
def absorb(q, k, v, tiles, first, last, m, l, acc, scale_log2, heads, flags, MASKED: tl.constexpr):
    """Takes column tiles first .. last into (m, l, acc); MASKED: whether any of them has a mask.

    Row numbers are loaded one tile ahead and mask numbers two ahead, so that no load waits for the one before it.
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
        if MASKED:
            s = tl.where(visible(low, high, flags), s, -float("inf"))
            low, high = mask_words(tiles.masks, number, (j + 1 >= tiles.unmasked) & (j + 1 < last), flags)
            number = tl.load(tiles.mask + j + 2, mask=j + 2 < last, other=0)
        top = tl.maximum(m, tl.max(s, 1) * scale_log2)
        reference = top
        if MASKED:  # a row that has seen nothing yet has top = -inf, and -inf - -inf would be NaN
            reference = tl.where(top == -float("inf"), 0.0, top)
        p = tl.exp2(s * scale_log2 - reference[:, None])
        fade = tl.exp2(m - reference)
        l = l * fade + tl.sum(p, 1)
        acc = tl.dot(p.to(values.dtype), values, acc * fade[:, None], input_precision=flags.PRECISION)
        m = top
    return m, l, acc


@triton.jit
def attention_forward(q, k, v, out, lse, plan, scale_log2, sizes, flags: tl.constexpr):
    """out and lse of one row tile of queries. SPLIT: tiles without a mask run in a loop of their own."""
    batch, head, part, exists = locate(plan, sizes, flags)
    if not exists:
        return
    heads = sizes.heads
    tiles, own, stored = row_tile(
        plan, sizes, batch, head, part, query_extent(sizes, flags), key_extent(sizes, flags), flags
    )

    queries = load_rows(
        q + (batch * sizes.query_time * heads + head) * flags.QK.DIM, own, stored, heads, flags.QK
    )
    # max(s) * scale is the maximum of s * scale only for a positive scale, so a negative one changes sign with the
    # queries; and never 0, since a masked score is -inf, and -inf times 0 would be NaN.
    queries = tl.where(scale_log2 < 0, -queries, queries)
    scale_log2 = tl.maximum(tl.abs(scale_log2), 2.0**-126)
    key_heads = heads // flags.GROUP
    k += (batch * sizes.key_time * key_heads + head // flags.GROUP) * flags.QK.DIM
    v += (batch * sizes.key_time * key_heads + head // flags.GROUP) * flags.VO.DIM

    m = tl.full((flags.M,), -float("inf"), tl.float32)
    l = tl.zeros((flags.M,), tl.float32)
    acc = tl.zeros((flags.M, flags.VO.PAD), tl.float32)
    if flags.SPLIT:
        m, l, acc = absorb(
            queries, k, v, tiles, 0, tiles.unmasked, m, l, acc, scale_log2, key_heads, flags, False
        )
    m, l, acc = absorb(
        queries, k, v, tiles, tiles.unmasked if flags.SPLIT else 0, tiles.count,
        m, l, acc, scale_log2, key_heads, flags, True,
    )  # fmt: skip

    out += (batch * sizes.query_time * heads + head) * flags.VO.DIM
    lse += (batch * heads + head) * sizes.query_time
    empty = l == 0.0
    l = tl.where(empty, 1.0, l)
    result = acc / l[:, None]
    log_sum = tl.where(empty, -float("inf"), (m + tl.log2(l)) / LOG2_E)
    if flags.JOINED:
        result, log_sum = join(out, lse, own, stored, result, log_sum, heads, flags.VO)
    store_rows(out, own, stored, result, heads, flags.VO)
    tl.store(lse + own, log_sum, mask=stored)
