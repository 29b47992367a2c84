"""Kernels for closed plans, where every key is seen in one row tile only (residue classes, chunks).

So one program owns the gradients of its queries and of its keys. It has few column tiles and its time is mostly waiting
for memory: all its loads are asked for before it waits for the first (benchmarks/LOG.md, section 8).
"""

import triton
import triton.language as tl

from .primitives import (
    LOG2_E,
    ask_rows,
    column_rows,
    held,
    join,
    key_extent,
    locate,
    mask_words,
    put_rows,
    query_extent,
    row_tile,
    store_rows,
    visible,
)


@triton.jit
def attention_closed_forward(q, k, v, out, lse, plan, scale_log2, sizes, flags: tl.constexpr):
    """out and lse of one row tile of queries."""
    batch, head, part, exists = locate(plan, sizes, flags)
    if not exists:
        return
    heads = sizes.heads
    tiles, own, stored = row_tile(
        plan, sizes, batch, head, part, query_extent(sizes, flags), key_extent(sizes, flags), flags
    )
    seen, real = column_rows(tiles, 0, flags)

    query_row = batch * sizes.query_time * heads + head
    key_heads = heads // flags.GROUP
    k += (batch * sizes.key_time * key_heads + head // flags.GROUP) * flags.QK.DIM
    v += (batch * sizes.key_time * key_heads + head // flags.GROUP) * flags.VO.DIM
    queries = ask_rows(q + query_row * flags.QK.DIM, own, stored, heads, flags.QK)
    keys = ask_rows(k, seen, real, key_heads, flags.QK)
    values = ask_rows(v, seen, real, key_heads, flags.VO)
    low, high = mask_words(
        tiles.masks, tl.load(tiles.mask, mask=tiles.count > 0, other=0),
        (0 >= tiles.unmasked) & (tiles.count > 0), flags,
    )  # fmt: skip
    if not flags.SINGLE:  # row and mask numbers of the second column tile, so that its loads wait for nothing
        next_seen, next_real = column_rows(tiles, 1, flags)
        number = tl.load(tiles.mask + 1, mask=1 < tiles.count, other=0)

    # Keeps the loads above in front of what follows: else the machine code waits for the queries before it asks for the
    # keys, and a program takes two round trips in place of one.
    tl.debug_barrier()
    queries = held(queries, stored, flags.QK)
    m = tl.full((flags.M,), -float("inf"), tl.float32)
    l = tl.zeros((flags.M,), tl.float32)
    acc = tl.zeros((flags.M, flags.VO.PAD), tl.float32)
    for j in range(tiles.count):
        keys_j = held(keys, real, flags.QK)
        values_j = held(values, real, flags.VO)
        sees = visible(low, high, flags)
        if not flags.SINGLE:  # the next column tile is on its way while this one is computed
            seen, real = next_seen, next_real
            keys = ask_rows(k, seen, real, key_heads, flags.QK)
            values = ask_rows(v, seen, real, key_heads, flags.VO)
            low, high = mask_words(
                tiles.masks, number, (j + 1 >= tiles.unmasked) & (j + 1 < tiles.count), flags
            )
            next_seen, next_real = column_rows(tiles, j + 2, flags)
            number = tl.load(tiles.mask + j + 2, mask=j + 2 < tiles.count, other=0)
        s = tl.dot(queries, keys_j.T, input_precision=flags.PRECISION) * scale_log2
        s = tl.where(sees, s, -float("inf"))
        top = tl.maximum(m, tl.max(s, 1))
        reference = tl.where(top == -float("inf"), 0.0, top)  # as in forward.py
        p = tl.exp2(s - reference[:, None])
        fade = tl.exp2(m - reference)
        l = l * fade + tl.sum(p, 1)
        acc = tl.dot(p.to(values_j.dtype), values_j, acc * fade[:, None], input_precision=flags.PRECISION)
        m = top

    out += query_row * flags.VO.DIM
    lse += (batch * heads + head) * sizes.query_time
    empty = l == 0.0
    l = tl.where(empty, 1.0, l)
    result = acc / l[:, None]
    log_sum = tl.where(empty, -float("inf"), (m + tl.log2(l)) / LOG2_E)
    if flags.JOINED:
        result, log_sum = join(out, lse, own, stored, result, log_sum, heads, flags.VO)
    store_rows(out, own, stored, result, heads, flags.VO)
    tl.store(lse + own, log_sum, mask=stored)


@triton.jit
def attention_whole_gradient(
    q, k, v, out, lse, dout, dlse, dq, dk, dv, plan, scale, scale_log2, sizes, flags: tl.constexpr
):
    """dq of one row tile of queries, dk and dv of all the keys it sees: 5 products where two passes need 7."""
    batch, head, part, exists = locate(plan, sizes, flags)
    if not exists:
        return
    heads = sizes.heads
    tiles, own, stored = row_tile(
        plan, sizes, batch, head, part, query_extent(sizes, flags), key_extent(sizes, flags), flags
    )
    seen, real = column_rows(tiles, 0, flags)

    query_row = batch * sizes.query_time * heads + head
    key_row = batch * sizes.key_time * heads + head
    statistics = (batch * heads + head) * sizes.query_time + own
    k += key_row * flags.QK.DIM
    v += key_row * flags.VO.DIM
    gradients = ask_rows(dout + query_row * flags.VO.DIM, own, stored, heads, flags.VO)
    outputs = ask_rows(out + query_row * flags.VO.DIM, own, stored, heads, flags.VO)
    queries = ask_rows(q + query_row * flags.QK.DIM, own, stored, heads, flags.QK)
    keys = ask_rows(k, seen, real, heads, flags.QK)
    values = ask_rows(v, seen, real, heads, flags.VO)
    row_lse = tl.load(lse + statistics, mask=stored, other=0.0) * LOG2_E
    delta = tl.load(dlse + statistics, mask=stored, other=0.0)
    low, high = mask_words(
        tiles.masks, tl.load(tiles.mask, mask=tiles.count > 0, other=0),
        (0 >= tiles.unmasked) & (tiles.count > 0), flags,
    )  # fmt: skip
    if not flags.SINGLE:  # row and mask numbers of the second column tile, so that its loads wait for nothing
        next_seen, next_real = column_rows(tiles, 1, flags)
        number = tl.load(tiles.mask + 1, mask=1 < tiles.count, other=0)

    gradients = held(gradients, stored, flags.VO)
    outputs = held(outputs, stored, flags.VO)
    queries = held(queries, stored, flags.QK)
    delta = tl.sum(gradients.to(tl.float32) * outputs.to(tl.float32), 1) - delta
    dk += key_row * flags.QK.DIM
    dv += key_row * flags.VO.DIM
    gradient = tl.zeros((flags.M, flags.QK.PAD), tl.float32)
    for j in range(tiles.count):
        keys_j = held(keys, real, flags.QK)
        values_j = held(values, real, flags.VO)
        sees = visible(low, high, flags)
        here, exist = seen, real
        if not flags.SINGLE:  # the next column tile is on its way while this one is computed
            seen, real = next_seen, next_real
            keys = ask_rows(k, seen, real, heads, flags.QK)
            values = ask_rows(v, seen, real, heads, flags.VO)
            low, high = mask_words(
                tiles.masks, number, (j + 1 >= tiles.unmasked) & (j + 1 < tiles.count), flags
            )
            next_seen, next_real = column_rows(tiles, j + 2, flags)
            number = tl.load(tiles.mask + j + 2, mask=j + 2 < tiles.count, other=0)
        s = tl.dot(queries, keys_j.T, input_precision=flags.PRECISION)
        dp = tl.dot(gradients, values_j.T, input_precision=flags.PRECISION)
        p = tl.where(sees, tl.exp2(s * scale_log2 - row_lse[:, None]), 0.0)
        ds = tl.where(sees, p * (dp - delta[:, None]), 0.0).to(queries.dtype)
        value_gradient = tl.dot(p.to(gradients.dtype).T, gradients, input_precision=flags.PRECISION)
        put_rows(dv, here, exist, value_gradient, heads, flags.VO, flags.JOINED)
        key_gradient = tl.dot(ds.T, queries, input_precision=flags.PRECISION)
        put_rows(dk, here, exist, key_gradient * scale, heads, flags.QK, flags.JOINED)
        # A NaN or infinite key times the ds = 0 of a query that does not see it would be NaN; those that do see it have
        # NaN in ds already.
        keys_j = tl.where(tl.abs(keys_j) < float("inf"), keys_j, 0.0)
        gradient = tl.dot(ds, keys_j, gradient, input_precision=flags.PRECISION)
    put_rows(dq + query_row * flags.QK.DIM, own, stored, gradient * scale, heads, flags.QK, flags.JOINED)
