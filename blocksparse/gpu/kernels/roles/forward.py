"""The forward pass with warp roles: the online softmax of the plain kernel, 64 rows a warpgroup."""

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
    Shape,
    accumulator,
    await_x,
    await_y,
    computing_registers,
    copied,
    fetch_own,
    fetch_tiles,
    find_work,
    make_own,
    make_own_barrier,
    make_ring,
    operand,
    part_rows,
    row_of,
    scores,
    store_rows,
    visible,
)

OVERLAPPING = gl.constexpr(128)  # with so many registers products run under their own exponentials


@gluon.jit
def exponentials(s, seen, m, l, scale_log2, MASKED: gl.constexpr):
    """(p, fade, m, l): one step of the online softmax."""
    if MASKED:
        s = gl.where(seen, s * scale_log2, -float("inf"))
        top = gl.maximum(m, gl.max(s, 1))
        reference = gl.where(top == -float("inf"), 0.0, top)  # rows that have seen nothing yet
        p = gl.exp2(s - reference[:, None])
    else:  # the maximum first, so that scaling and subtracting are one fused operation
        top = gl.maximum(m, gl.max(s, 1) * scale_log2)
        reference = top
        p = gl.exp2(s * scale_log2 - reference[:, None])
    fade = gl.exp2(m - reference)
    return p, fade, top, l * fade + gl.sum(p, 1)


@gluon.jit
def absorb_in_turn(
    queries, ring, PART: gl.constexpr, first, last, m, l, acc, scale_log2, shape, MASKED: gl.constexpr
):
    """Takes tiles first .. last into (m, l, acc), one step after the other.

    Few registers: two programs share a multiprocessor, and the products of one run under the other's exponentials.
    """
    for j in range(first, last):
        stage = j % shape.STAGES
        await_x(ring, j, last, shape)
        s = scores(queries, ring.x.index(stage), shape)
        seen = visible(ring, stage, PART, False, shape) if MASKED else True
        s = warpgroup_mma_wait(0, [s])
        p, fade, m, l = exponentials(s, seen, m, l, scale_log2, MASKED)
        p = gl.convert_layout(p.to(ring.y.dtype), operand(shape.VALUE_PAD))
        acc = acc * gl.convert_layout(fade, row_of(shape.VALUE_PAD))[:, None]
        await_y(ring, j, shape)
        acc = warpgroup_mma_wait(0, [warpgroup_mma(p, ring.y.index(stage), acc, is_async=True)])
        mbarrier.arrive(ring.empty.index(stage), count=1)
    return m, l, acc


@gluon.jit
def absorb(
    queries, ring, PART: gl.constexpr, first, last, count, p, m, l, acc, scale_log2, shape, MASKED: gl.constexpr
):  # fmt: skip
    """Takes tiles first .. last into (m, l); acc takes the product that the tile before each owes, meanwhile.

    Tile `first` has arrived. The next is awaited before the wait for acc: that ends a block, and so keeps the assembler
    from waiting before the exponentials.
    """
    for j in range(first, last):
        before = (j + shape.STAGES - 1) % shape.STAGES
        s = scores(queries, ring.x.index(j % shape.STAGES), shape)
        await_y(ring, j - 1, shape)
        acc = warpgroup_mma(p, ring.y.index(before), acc, is_async=True)
        seen = visible(ring, j % shape.STAGES, PART, False, shape) if MASKED else True
        s = warpgroup_mma_wait(1, [s])
        fresh, fade, m, l = exponentials(s, seen, m, l, scale_log2, MASKED)
        fresh = gl.convert_layout(fresh.to(ring.y.dtype), operand(shape.VALUE_PAD))
        await_x(ring, j + 1, count, shape)
        acc, p = warpgroup_mma_wait(0, [acc, fresh])
        mbarrier.arrive(ring.empty.index(before), count=1)
        acc = acc * gl.convert_layout(fade, row_of(shape.VALUE_PAD))[:, None]
    return p, m, l, acc


@gluon.jit
def attend(
    PART: gl.constexpr, out, lse, work, q_own, own_full, ring, scale_log2, shape, OVERLAP: gl.constexpr
):
    """out and lse of 64 rows."""
    m = gl.full([64], -float("inf"), gl.float32, row_of(shape.N))
    l = gl.zeros([64], gl.float32, row_of(shape.N))
    acc = gl.zeros([64, shape.VALUE_PAD], gl.float32, accumulator(shape.VALUE_PAD))
    queries = q_own.slice(PART * 64, 64, dim=0)
    mbarrier.wait(own_full, 0)
    if scale_log2 < 0:  # the running maximum wants a positive scale
        queries.store(-queries.load(copied(shape.HEAD_PAD)))
        fence_async_shared()
        scale_log2 = -scale_log2
    if not OVERLAP:
        m, l, acc = absorb_in_turn(queries, ring, PART, 0, work.full, m, l, acc, scale_log2, shape, False)
        m, l, acc = absorb_in_turn(
            queries, ring, PART, work.full, work.count, m, l, acc, scale_log2, shape, True
        )
    elif work.count > 0:
        await_x(ring, 0, work.count, shape)
        s = warpgroup_mma_wait(0, [scores(queries, ring.x.index(0), shape)])
        seen = visible(ring, 0, PART, work.full > 0, shape)
        p, _, m, l = exponentials(s, seen, m, l, scale_log2, True)
        p = gl.convert_layout(p.to(ring.y.dtype), operand(shape.VALUE_PAD))
        await_x(ring, 1, work.count, shape)
        p, m, l, acc = absorb(
            queries, ring, PART, 1, work.full, work.count, p, m, l, acc, scale_log2, shape, False
        )
        masked = gl.maximum(work.full, 1)
        p, m, l, acc = absorb(
            queries, ring, PART, masked, work.count, work.count, p, m, l, acc, scale_log2, shape, True
        )
        await_y(ring, work.count - 1, shape)
        last = ring.y.index((work.count - 1) % shape.STAGES)
        acc = warpgroup_mma_wait(0, [warpgroup_mma(p, last, acc, is_async=True)])
    empty = l == 0.0
    l = gl.where(empty, 1.0, l)
    acc = acc / gl.convert_layout(l, row_of(shape.VALUE_PAD))[:, None]
    store_rows(out, acc, work, PART, shape, shape.VALUE_DIM, shape.VALUE_PAD)
    rows, stored = part_rows(work, PART, shape, row_of(shape.N))
    gl.store(lse + rows, gl.where(empty, -float("inf"), (m + gl.log2(l)) / LOG2_E), mask=stored)


@gluon.jit
def fetch(q, k, v, work, q_own, own_full, ring, shape):
    fetch_own(q_own, q, work, shape, shape.HEAD_DIM, shape.HEAD_PAD)
    async_copy.mbarrier_arrive(own_full, increment_count=False)
    fetch_tiles(k, v, (), work, ring, shape)


@gluon.jit
def attention_forward_roles(
    q, k, v, out, lse, head_index, order, head_tiles, rows, row_count, offset, full, columns, mask, masks,
    scale_log2, heads, query_time, key_time, tiles,
    HEAD_DIM: gl.constexpr, VALUE_DIM: gl.constexpr, HEAD_PAD: gl.constexpr, VALUE_PAD: gl.constexpr,
    M: gl.constexpr, N: gl.constexpr, GRANULE: gl.constexpr, HEAVIEST_FIRST: gl.constexpr,
    PERMUTED: gl.constexpr, SHARED: gl.constexpr, WIDE: gl.constexpr,
    COLUMNS: gl.constexpr, STAGES: gl.constexpr, REGISTERS: gl.constexpr,
):  # fmt: skip
    """out and lse of one row tile of queries."""
    shape = Shape(HEAD_DIM, VALUE_DIM, HEAD_PAD, VALUE_PAD, M, COLUMNS, N, GRANULE, PERMUTED, WIDE, STAGES)
    batch, head, work = find_work(
        head_index, order, head_tiles, rows, row_count, offset, full, columns, mask, masks, heads, query_time, key_time,
        tiles, shape, SHARED, HEAVIEST_FIRST,
    )  # fmt: skip
    query_row, key_row = batch * query_time * heads + head, batch * key_time * heads + head
    q += query_row * HEAD_DIM
    k += key_row * HEAD_DIM
    v += key_row * VALUE_DIM
    out += query_row * VALUE_DIM
    lse += (batch * heads + head) * query_time
    element: gl.constexpr = q.dtype.element_ty
    q_own, ring, own_full = make_own(element, shape, HEAD_PAD), make_ring(element, shape), make_own_barrier()
    OVERLAP: gl.constexpr = REGISTERS >= OVERLAPPING
    gl.warp_specialize(
        [
            (attend, (0, out, lse, work, q_own, own_full, ring, scale_log2, shape, OVERLAP)),
            (attend, (1, out, lse, work, q_own, own_full, ring, scale_log2, shape, OVERLAP)),
            (fetch, (q, k, v, work, q_own, own_full, ring, shape)),
        ],
        [4, 4],
        [computing_registers(REGISTERS), FETCH_REGISTERS],
    )
