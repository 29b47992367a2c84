"""The two passes of the backward pass with warp roles; p, ds and delta as in the plain kernels.

Products read the ring asynchronously: a tile's last ones run under the next tile's exponentials.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    async_copy,
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from ..primitives import LOG2_E
from .ring import (
    FETCH_REGISTERS,
    PLAIN,
    VECTOR,
    Shape,
    accumulator,
    addresses,
    await_x,
    await_y,
    column_rows,
    computing_registers,
    copied,
    fetch_own,
    fetch_tiles,
    find_work,
    make_own,
    make_own_barrier,
    make_ring,
    mask_words,
    operand,
    part_rows,
    row_of,
    scores,
    store_rows,
    visible,
)


@gluon.jit
def fetch(a, b, x, y, statistics, work, a_own, b_own, own_full, ring, shape):
    fetch_own(a_own, a, work, shape, shape.HEAD_DIM, shape.HEAD_PAD)
    fetch_own(b_own, b, work, shape, shape.VALUE_DIM, shape.VALUE_PAD)
    async_copy.mbarrier_arrive(own_full, increment_count=False)
    fetch_tiles(x, y, statistics, work, ring, shape)


@gluon.jit
def query_products(s, dp, row_lse, row_delta, seen, scale_log2, MASKED: gl.constexpr, OWED: gl.constexpr):
    """ds; s and dp are in flight, OWED products after them."""
    s = warpgroup_mma_wait(OWED + 1, [s])
    p = gl.exp2(s * scale_log2 - row_lse[:, None])
    dp = warpgroup_mma_wait(OWED, [dp])
    ds = p * (dp - row_delta[:, None])
    if MASKED:
        ds = gl.where(seen, ds, 0.0)
    return ds


@gluon.jit
def gather_query_gradient(
    queries, gradients, ring, PART: gl.constexpr, first, last, count, row_lse, row_delta, ds, dq, scale_log2, shape,
    MASKED: gl.constexpr,
):  # fmt: skip
    """ds of tiles first .. last, and dq + ds k of the tile before each. Tile `first` of k has arrived."""
    for j in range(first, last):
        stage = j % shape.STAGES
        before = (j + shape.STAGES - 1) % shape.STAGES
        s = scores(queries, ring.x.index(stage), shape)
        await_y(ring, j, shape)
        dp = scores(gradients, ring.y.index(stage), shape)
        dq = warpgroup_mma(ds, ring.x.index(before), dq, is_async=True)
        seen = visible(ring, stage, PART, False, shape) if MASKED else True
        fresh = query_products(s, dp, row_lse, row_delta, seen, scale_log2, MASKED, 1)
        fresh = gl.convert_layout(fresh.to(ring.x.dtype), operand(shape.HEAD_PAD))
        await_x(ring, j + 1, count, shape)  # here for the reason in forward.py
        dq, ds = warpgroup_mma_wait(0, [dq, fresh])
        mbarrier.arrive(ring.empty.index(before), count=1)
    return ds, dq


@gluon.jit
def query_gradient(
    PART: gl.constexpr, out, lse, dout, dlse, delta, dq_out, work, q_own, g_own, own_full, ring, poison, scale,
    scale_log2, shape,
):  # fmt: skip
    """delta and dq of 64 queries; poison says whether dq holds NaN."""
    read: gl.constexpr = copied(shape.VALUE_PAD)
    rows, stored = part_rows(work, PART, shape, gl.SliceLayout(1, read))
    where, inside = addresses(out, rows, work, shape, shape.VALUE_DIM, shape.VALUE_PAD, read)
    outputs = gl.load(where, mask=stored[:, None] & inside, other=0.0).to(gl.float32)
    where, inside = addresses(dout, rows, work, shape, shape.VALUE_DIM, shape.VALUE_PAD, read)
    gradients = gl.load(where, mask=stored[:, None] & inside, other=0.0).to(gl.float32)
    row_delta = gl.convert_layout(gl.sum(outputs * gradients, 1), row_of(shape.N))
    rows, stored = part_rows(work, PART, shape, row_of(shape.N))
    row_delta -= gl.load(dlse + rows, mask=stored, other=0.0)
    gl.store(delta + rows, row_delta, mask=stored)
    row_lse = gl.load(lse + rows, mask=stored, other=float("inf")) * LOG2_E  # no ds where no row is

    dq = gl.zeros([64, shape.HEAD_PAD], gl.float32, accumulator(shape.HEAD_PAD))
    queries, gradients = q_own.slice(PART * 64, 64, dim=0), g_own.slice(PART * 64, 64, dim=0)
    mbarrier.wait(own_full, 0)
    if work.count > 0:
        await_x(ring, 0, work.count, shape)
        s = scores(queries, ring.x.index(0), shape)
        await_y(ring, 0, shape)
        dp = scores(gradients, ring.y.index(0), shape)
        seen = visible(ring, 0, PART, work.full > 0, shape)
        ds = query_products(s, dp, row_lse, row_delta, seen, scale_log2, True, 0)
        ds = gl.convert_layout(ds.to(ring.x.dtype), operand(shape.HEAD_PAD))
        await_x(ring, 1, work.count, shape)
        ds, dq = gather_query_gradient(
            queries, gradients, ring, PART, 1, work.full, work.count, row_lse, row_delta, ds, dq, scale_log2, shape,
            False,
        )  # fmt: skip
        ds, dq = gather_query_gradient(
            queries, gradients, ring, PART, gl.maximum(work.full, 1), work.count, work.count, row_lse, row_delta, ds,
            dq, scale_log2, shape, True,
        )  # fmt: skip
        last = ring.x.index((work.count - 1) % shape.STAGES)
        dq = warpgroup_mma_wait(0, [warpgroup_mma(ds, last, dq, is_async=True)])
    store_rows(dq_out, dq * scale, work, PART, shape, shape.HEAD_DIM, shape.HEAD_PAD)
    poisoned = gl.max(gl.max((dq != dq).to(gl.int32), 1), 0)
    poison.index(PART).store(gl.full([1], poisoned, gl.int32, VECTOR))


@gluon.jit
def loaded_rows(pointer, rows, work, shape, DIM: gl.constexpr, PAD: gl.constexpr):
    where, inside = addresses(pointer, rows, work, shape, DIM, PAD, copied(PAD))
    return gl.load(where, mask=inside, other=0.0)


@gluon.jit
def query_gradient_again(
    PART: gl.constexpr, k, v, lse, delta, dq_out, work, q_own, g_own, ring, scale, scale_log2, shape
):
    """dq of 64 queries with NaN and infinite keys silenced in its own product: who sees one has ds NaN."""
    rows, stored = part_rows(work, PART, shape, row_of(shape.N))
    row_delta = gl.load(delta + rows, mask=stored, other=0.0)
    row_lse = gl.load(lse + rows, mask=stored, other=0.0) * LOG2_E
    dq = gl.zeros([64, shape.HEAD_PAD], gl.float32, accumulator(shape.HEAD_PAD))
    queries, gradients = q_own.slice(PART * 64, 64, dim=0), g_own.slice(PART * 64, 64, dim=0)
    for j in range(work.count):
        x_rows = column_rows(work, j, shape, gl.SliceLayout(1, copied(shape.HEAD_PAD)))
        y_rows = column_rows(work, j, shape, gl.SliceLayout(1, copied(shape.VALUE_PAD)))
        keys = loaded_rows(k, x_rows, work, shape, shape.HEAD_DIM, shape.HEAD_PAD)
        ring.x.index(0).store(keys)
        ring.x.index(1).store(gl.where(gl.maximum(keys, -keys) < float("inf"), keys, 0.0))
        ring.y.index(0).store(loaded_rows(v, y_rows, work, shape, shape.VALUE_DIM, shape.VALUE_PAD))
        words = mask_words(work, gl.load(work.mask + j * shape.N // shape.TILE), j, shape)
        for word in gl.static_range(shape.N // 32):
            masked = gl.full([shape.M], 0, gl.int32, VECTOR) + j >= work.full
            ring.words.index(word).store(gl.load(words + word, mask=masked, other=-1))
        fence_async_shared()
        gl.barrier()
        s, dp = scores(queries, ring.x.index(0), shape), scores(gradients, ring.y.index(0), shape)
        seen = visible(ring, 0, PART, False, shape)
        ds = query_products(s, dp, row_lse, row_delta, seen, scale_log2, True, 0)
        ds = gl.convert_layout(ds.to(ring.x.dtype), operand(shape.HEAD_PAD))
        dq = warpgroup_mma_wait(0, [warpgroup_mma(ds, ring.x.index(1), dq, is_async=True)])
        gl.barrier()
    store_rows(dq_out, dq * scale, work, PART, shape, shape.HEAD_DIM, shape.HEAD_PAD)


@gluon.jit
def attention_query_gradient_roles(
    q, k, v, out, lse, dout, dlse, delta, dq, head_index, order, head_tiles, rows, row_count, offset, full,
    columns, mask, masks, scale, scale_log2, heads, query_time, key_time, tiles,
    HEAD_DIM: gl.constexpr, VALUE_DIM: gl.constexpr, HEAD_PAD: gl.constexpr, VALUE_PAD: gl.constexpr,
    M: gl.constexpr, N: gl.constexpr, GRANULE: gl.constexpr, HEAVIEST_FIRST: gl.constexpr,
    PERMUTED: gl.constexpr, SHARED: gl.constexpr, WIDE: gl.constexpr,
    COLUMNS: gl.constexpr, STAGES: gl.constexpr, REGISTERS: gl.constexpr,
):  # fmt: skip
    """delta and dq of one row tile of queries."""
    shape = Shape(HEAD_DIM, VALUE_DIM, HEAD_PAD, VALUE_PAD, M, COLUMNS, N, GRANULE, PERMUTED, WIDE, STAGES)
    batch, head, work = find_work(
        head_index, order, head_tiles, rows, row_count, offset, full, columns, mask, masks, heads, query_time, key_time,
        tiles, shape, SHARED, HEAVIEST_FIRST,
    )  # fmt: skip
    query_row, key_row = batch * query_time * heads + head, batch * key_time * heads + head
    q += query_row * HEAD_DIM
    dq += query_row * HEAD_DIM
    out += query_row * VALUE_DIM
    dout += query_row * VALUE_DIM
    k += key_row * HEAD_DIM
    v += key_row * VALUE_DIM
    lse += (batch * heads + head) * query_time
    dlse += (batch * heads + head) * query_time
    delta += (batch * heads + head) * query_time
    element: gl.constexpr = q.dtype.element_ty
    q_own, g_own = make_own(element, shape, HEAD_PAD), make_own(element, shape, VALUE_PAD)
    ring = make_ring(element, shape)
    poison = gl.allocate_shared_memory(gl.int32, [2, 1], PLAIN)
    own_full = make_own_barrier()
    gl.warp_specialize(
        [
            (query_gradient, (0, out, lse, dout, dlse, delta, dq, work, q_own, g_own, own_full, ring, poison, scale,
                              scale_log2, shape)),
            (query_gradient, (1, out, lse, dout, dlse, delta, dq, work, q_own, g_own, own_full, ring, poison, scale,
                              scale_log2, shape)),
            (fetch, (q, dout, k, v, (), work, q_own, g_own, own_full, ring, shape)),
        ],
        [4, 4],
        [computing_registers(REGISTERS), FETCH_REGISTERS],
    )  # fmt: skip
    # A key that is NaN reaches every row of its tiles through 0 x NaN. Rare, so noticed afterwards and done again.
    for part in gl.static_range(2):
        if gl.max(poison.index(part).load(VECTOR), 0) != 0:
            query_gradient_again(
                part, k, v, lse, delta, dq, work, q_own, g_own, ring, scale, scale_log2, shape
            )


@gluon.jit
def key_products(s, dp, lse, delta, seen, scale_log2, shape, MASKED: gl.constexpr, OWED: gl.constexpr):
    """(p, ds); s and dp are in flight, OWED products after them."""
    column: gl.constexpr = gl.SliceLayout(0, accumulator(shape.N))
    column_lse, column_delta = lse.load(column) * LOG2_E, delta.load(column)
    s = warpgroup_mma_wait(OWED + 1, [s])
    p = gl.exp2(s * scale_log2 - column_lse[None, :])
    dp = warpgroup_mma_wait(OWED, [dp])
    ds = p * (dp - column_delta[None, :])
    if MASKED:  # both: a query that sees a NaN key has NaN in lse and delta
        p = gl.where(seen, p, 0.0)
        ds = gl.where(seen, ds, 0.0)
    return p, ds


@gluon.jit
def gather_key_gradient(
    keys, values, lse, delta, ring, PART: gl.constexpr, first, last, count, p, ds, dk, dv, scale_log2, shape,
    MASKED: gl.constexpr,
):  # fmt: skip
    """p and ds of tiles first .. last of queries, and dv + p dout, dk + ds q of the tile before each."""
    for j in range(first, last):
        stage = j % shape.STAGES
        before = (j + shape.STAGES - 1) % shape.STAGES
        s = scores(keys, ring.x.index(stage), shape)
        await_y(ring, j, shape)
        dp = scores(values, ring.y.index(stage), shape)
        dv = warpgroup_mma(p, ring.y.index(before), dv, is_async=True)
        dk = warpgroup_mma(ds, ring.x.index(before), dk, is_async=True)
        seen = visible(ring, stage, PART, False, shape) if MASKED else True
        fresh_p, fresh_ds = key_products(
            s, dp, lse.index(stage), delta.index(stage), seen, scale_log2, shape, MASKED, 2
        )
        fresh_p = gl.convert_layout(fresh_p.to(ring.x.dtype), operand(shape.VALUE_PAD))
        fresh_ds = gl.convert_layout(fresh_ds.to(ring.x.dtype), operand(shape.HEAD_PAD))
        await_x(ring, j + 1, count, shape)
        dk, dv, p, ds = warpgroup_mma_wait(0, [dk, dv, fresh_p, fresh_ds])
        mbarrier.arrive(ring.empty.index(before), count=1)
    return p, ds, dk, dv


@gluon.jit
def key_gradient(
    PART: gl.constexpr, dk_out, dv_out, work, k_own, v_own, lse, delta, own_full, ring, scale, scale_log2, shape
):  # fmt: skip
    """dk and dv of 64 keys; lse and delta are rings."""
    dk = gl.zeros([64, shape.HEAD_PAD], gl.float32, accumulator(shape.HEAD_PAD))
    dv = gl.zeros([64, shape.VALUE_PAD], gl.float32, accumulator(shape.VALUE_PAD))
    keys, values = k_own.slice(PART * 64, 64, dim=0), v_own.slice(PART * 64, 64, dim=0)
    mbarrier.wait(own_full, 0)
    if work.count > 0:
        await_x(ring, 0, work.count, shape)
        s = scores(keys, ring.x.index(0), shape)
        await_y(ring, 0, shape)
        dp = scores(values, ring.y.index(0), shape)
        seen = visible(ring, 0, PART, work.full > 0, shape)
        p, ds = key_products(s, dp, lse.index(0), delta.index(0), seen, scale_log2, shape, True, 0)
        p = gl.convert_layout(p.to(ring.x.dtype), operand(shape.VALUE_PAD))
        ds = gl.convert_layout(ds.to(ring.x.dtype), operand(shape.HEAD_PAD))
        await_x(ring, 1, work.count, shape)
        p, ds, dk, dv = gather_key_gradient(
            keys, values, lse, delta, ring, PART, 1, work.full, work.count, p, ds, dk, dv, scale_log2, shape, False
        )  # fmt: skip
        p, ds, dk, dv = gather_key_gradient(
            keys, values, lse, delta, ring, PART, gl.maximum(work.full, 1), work.count, work.count, p, ds, dk, dv,
            scale_log2, shape, True,
        )  # fmt: skip
        last = (work.count - 1) % shape.STAGES
        dv = warpgroup_mma(p, ring.y.index(last), dv, is_async=True)
        dk = warpgroup_mma(ds, ring.x.index(last), dk, is_async=True)
        dk, dv = warpgroup_mma_wait(0, [dk, dv])
    store_rows(dk_out, dk * scale, work, PART, shape, shape.HEAD_DIM, shape.HEAD_PAD)
    store_rows(dv_out, dv, work, PART, shape, shape.VALUE_DIM, shape.VALUE_PAD)


@gluon.jit
def attention_key_gradient_roles(
    q, k, v, lse, dout, delta, dk, dv, head_index, order, head_tiles, rows, row_count, offset, full,
    columns, mask, masks, scale, scale_log2, heads, query_time, key_time, tiles,
    HEAD_DIM: gl.constexpr, VALUE_DIM: gl.constexpr, HEAD_PAD: gl.constexpr, VALUE_PAD: gl.constexpr,
    M: gl.constexpr, N: gl.constexpr, GRANULE: gl.constexpr, HEAVIEST_FIRST: gl.constexpr,
    PERMUTED: gl.constexpr, SHARED: gl.constexpr, WIDE: gl.constexpr,
    COLUMNS: gl.constexpr, STAGES: gl.constexpr, REGISTERS: gl.constexpr,
):  # fmt: skip
    """dk and dv of one row tile of keys; its column tiles are queries."""
    shape = Shape(HEAD_DIM, VALUE_DIM, HEAD_PAD, VALUE_PAD, M, COLUMNS, N, GRANULE, PERMUTED, WIDE, STAGES)
    batch, head, work = find_work(
        head_index, order, head_tiles, rows, row_count, offset, full, columns, mask, masks, heads, key_time, query_time,
        tiles, shape, SHARED, HEAVIEST_FIRST,
    )  # fmt: skip
    query_row, key_row = batch * query_time * heads + head, batch * key_time * heads + head
    q += query_row * HEAD_DIM
    dout += query_row * VALUE_DIM
    k += key_row * HEAD_DIM
    dk += key_row * HEAD_DIM
    v += key_row * VALUE_DIM
    dv += key_row * VALUE_DIM
    lse += (batch * heads + head) * query_time
    delta += (batch * heads + head) * query_time
    element: gl.constexpr = q.dtype.element_ty
    k_own, v_own = make_own(element, shape, HEAD_PAD), make_own(element, shape, VALUE_PAD)
    ring = make_ring(element, shape)
    lse_ring = gl.allocate_shared_memory(gl.float32, [STAGES, COLUMNS], PLAIN)
    delta_ring = gl.allocate_shared_memory(gl.float32, [STAGES, COLUMNS], PLAIN)
    own_full = make_own_barrier()
    statistics = (lse_ring, lse), (delta_ring, delta)
    gl.warp_specialize(
        [
            (key_gradient, (0, dk, dv, work, k_own, v_own, lse_ring, delta_ring, own_full, ring, scale, scale_log2,
                            shape)),
            (key_gradient, (1, dk, dv, work, k_own, v_own, lse_ring, delta_ring, own_full, ring, scale, scale_log2,
                            shape)),
            (fetch, (k, v, q, dout, statistics, work, k_own, v_own, own_full, ring, shape)),
        ],
        [4, 4],
        [computing_registers(REGISTERS), FETCH_REGISTERS],
    )  # fmt: skip
