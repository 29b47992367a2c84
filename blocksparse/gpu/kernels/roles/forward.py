"""The forward pass with warp roles: the online softmax of the plain kernel, 64 rows a warpgroup."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from ..primitives import LOG2_E, key_extent, query_extent
from .copies import copy_own, fetch_tiles
from .results import loaded_part, store_rows, through
from .ring import (
    EVERY,
    NONE,
    SOME,
    accumulator,
    await_x,
    await_y,
    copied,
    hidden,
    make_barriers,
    make_own,
    make_ring,
    operand,
    part_granules,
    part_of,
    part_rows,
    part_words,
    release,
    row_of,
    scores,
    sight,
    words_or,
)
from .walk import find_work, make_shape, make_walk, next_work, worker_registers, worker_warps


@gluon.jit
def exponentials(s, m, l, scale_log2, MASKED: gl.constexpr):
    """(p, fade, m, l): one step of the online softmax, where MASKED of scores that may be -inf."""
    top = gl.maximum(m, gl.max(s, 1) * scale_log2)
    # A row that has seen nothing yet has top = -inf, and -inf - -inf would be NaN.
    reference = gl.where(top == -float("inf"), 0.0, top) if MASKED else top
    p = gl.exp2(s * scale_log2 - reference[:, None])
    fade = gl.exp2(m - reference)
    return p, fade, top, l * fade + gl.sum(p, 1)


@gluon.jit
def absorb_in_turn(
    queries, ring, PART: gl.constexpr, first, last, m, l, acc, scale_log2, shape, MASKED: gl.constexpr
):
    """Takes the tiles at places first .. last into (m, l, acc), one after the other: without shape.OVERLAP.

    Tiles that these 64 rows see nothing of are skipped: in a short row a quarter (benchmarks/LOG.md, section 13).
    """
    for j in range(first, last):
        stage = j % shape.STAGES
        await_x(ring, j, last, shape)
        seen = sight(ring, stage, PART, shape) if MASKED else EVERY
        if seen != NONE:
            s = warpgroup_mma_wait(0, [scores(queries, ring.x.index(stage), shape)])
            if seen == SOME:
                s = hidden(s, part_words(ring, stage, PART, shape), shape, "-inf")
            p, fade, m, l = exponentials(s, m, l, scale_log2, MASKED)
            p = gl.convert_layout(p.to(ring.y.dtype), operand(shape.VALUE_PAD))
            acc = acc * gl.convert_layout(fade, row_of(shape.VALUE_PAD))[:, None]
            await_y(ring, j, shape)
            acc = warpgroup_mma_wait(0, [warpgroup_mma(p, ring.y.index(stage), acc, is_async=True)])
        else:
            await_y(ring, j, shape)
        release(ring, stage)
    return m, l, acc


@gluon.jit
def absorb(
    queries, ring, PART: gl.constexpr, first, last, end, p, m, l, acc, scale_log2, shape, MASKED: gl.constexpr
):  # fmt: skip
    """Takes tiles first .. last into (m, l), while the product p v of the tile before each runs: with shape.OVERLAP.

    Tile `first` has arrived. The next is awaited before the wait for acc, for a reason in the assembler: it moves the
    wait for a product up as far as it can inside a block, in front of the exponentials that it should run under. A wait
    for a barrier is a branch and ends the block (benchmarks/LOG.md, section 9).
    """
    for j in range(first, last):
        before = (j + shape.STAGES - 1) % shape.STAGES
        s = scores(queries, ring.x.index(j % shape.STAGES), shape)
        await_y(ring, j - 1, shape)
        acc = warpgroup_mma(p, ring.y.index(before), acc, is_async=True)
        words = part_words(ring, j % shape.STAGES, PART, shape) if MASKED else ()
        s = warpgroup_mma_wait(1, [s])
        if MASKED:
            s = hidden(s, words, shape, "-inf")
        fresh, fade, m, l = exponentials(s, m, l, scale_log2, MASKED)
        fresh = gl.convert_layout(fresh.to(ring.y.dtype), operand(shape.VALUE_PAD))
        await_x(ring, j + 1, end, shape)
        acc, p = warpgroup_mma_wait(0, [acc, fresh])
        release(ring, before)
        acc = acc * gl.convert_layout(fade, row_of(shape.VALUE_PAD))[:, None]
    return p, m, l, acc


@gluon.jit
def absorb_overlapping(queries, ring, PART: gl.constexpr, first, full, last, m, l, acc, scale_log2, shape):
    """Takes tiles first .. last into (m, l, acc); those from `full` on have masks."""
    if first < last:
        await_x(ring, first, last, shape)
        s = warpgroup_mma_wait(0, [scores(queries, ring.x.index(first % shape.STAGES), shape)])
        words = words_or(ring, first % shape.STAGES, PART, shape, -(first < full).to(gl.int32))
        p, _, m, l = exponentials(hidden(s, words, shape, "-inf"), m, l, scale_log2, True)
        p = gl.convert_layout(p.to(ring.y.dtype), operand(shape.VALUE_PAD))
        await_x(ring, first + 1, last, shape)
        p, m, l, acc = absorb(
            queries, ring, PART, first + 1, full, last, p, m, l, acc, scale_log2, shape, False
        )
        masked = gl.maximum(full, first + 1)
        p, m, l, acc = absorb(queries, ring, PART, masked, last, last, p, m, l, acc, scale_log2, shape, True)
        await_y(ring, last - 1, shape)
        stage = (last - 1) % shape.STAGES
        acc = warpgroup_mma_wait(0, [warpgroup_mma(p, ring.y.index(stage), acc, is_async=True)])
        release(ring, stage)
    return m, l, acc


@gluon.jit
def join(
    out, lse, result, log_sum, queries, out_granules, lse_granules, walk, work, PART: gl.constexpr, shape
):
    """primitives.join of 64 rows; their queries are done with. All threads that read a row's lse are in one warp."""
    rows, exist = part_rows(lse_granules, walk, work, PART, shape, row_of(shape.N))
    sums = lse + (work.batch * walk.heads + work.head) * walk.own_time
    before = gl.load(sums + rows, mask=exist, other=-float("inf"))
    top = gl.maximum(before, log_sum)
    top = gl.where(top == -float("inf"), 0.0, top)
    old, new = gl.exp2((before - top) * LOG2_E), gl.exp2((log_sum - top) * LOG2_E)
    total = old + new
    log_sum = gl.where(total == 0.0, -float("inf"), top + gl.log2(total) / LOG2_E)
    total = gl.where(total == 0.0, 1.0, total)
    rows = loaded_part(out, out_granules, walk, work, PART, shape, shape.VALUE_DIM, shape.VALUE_PAD)
    if shape.VALUE_PAD == shape.HEAD_PAD:
        rows = through(queries, rows, accumulator(shape.VALUE_PAD))
    else:
        rows = gl.convert_layout(rows, accumulator(shape.VALUE_PAD))
    result = result * gl.convert_layout(new / total, row_of(shape.VALUE_PAD))[:, None]
    old = gl.convert_layout(old / total, row_of(shape.VALUE_PAD))[:, None]
    return result + rows.to(gl.float32) * old, log_sum


@gluon.jit
def attend(PART: gl.constexpr, given):
    """A computing warpgroup: out and lse of 64 rows of each row tile, of the first where PART is 0."""
    out, lse, walk, q_own, own, ring, scale_log2, shape = given
    place, turn = 0, 0
    work = find_work(walk, gl.program_id(0), shape)
    for number in range(gl.program_id(0), walk.count, gl.num_programs(0)):
        after = next_work(walk, number, work, shape)
        out_granules = part_granules(walk, work, PART, shape, gl.SliceLayout(1, copied(shape.VALUE_PAD)))
        lse_granules = part_granules(walk, work, PART, shape, row_of(shape.N))
        count, unmasked = work.column_tiles(shape)
        full, last = place + unmasked, place + count
        m = gl.full([64], -float("inf"), gl.float32, row_of(shape.N))
        l = gl.zeros([64], gl.float32, row_of(shape.N))
        acc = gl.zeros([64, shape.VALUE_PAD], gl.float32, accumulator(shape.VALUE_PAD))
        queries = part_of(q_own, turn, PART, own.COUNT, shape)
        own.await_full(turn)
        # max(s) * scale is the maximum of s * scale only for a positive scale: a negative one turns the queries' sign.
        if scale_log2 < 0:
            queries.store(-queries.load(copied(shape.HEAD_PAD)))
            fence_async_shared()
        # Never 0: a masked score is -inf, and -inf times 0 would be NaN.
        factor = gl.maximum(gl.maximum(scale_log2, -scale_log2), 1e-37)
        if shape.OVERLAP:
            m, l, acc = absorb_overlapping(queries, ring, PART, place, full, last, m, l, acc, factor, shape)
        else:
            m, l, acc = absorb_in_turn(queries, ring, PART, place, full, m, l, acc, factor, shape, False)
            m, l, acc = absorb_in_turn(queries, ring, PART, full, last, m, l, acc, factor, shape, True)
        empty = l == 0.0
        l = gl.where(empty, 1.0, l)
        result = acc * gl.convert_layout(1.0 / l, row_of(shape.VALUE_PAD))[:, None]
        log_sum = gl.where(empty, -float("inf"), (m + gl.log2(l)) / LOG2_E)
        if shape.JOINED:
            result, log_sum = join(
                out, lse, result, log_sum, queries, out_granules, lse_granules, walk, work, PART, shape
            )
        result = result.to(out.dtype.element_ty)
        if shape.VALUE_PAD == shape.HEAD_PAD:
            result = through(queries, result, copied(shape.VALUE_PAD))
        else:
            result = gl.convert_layout(result, copied(shape.VALUE_PAD))
        own.release(turn)
        store_rows(out, result, out_granules, walk, work, PART, shape, shape.VALUE_DIM, shape.VALUE_PAD)
        rows, exist = part_rows(lse_granules, walk, work, PART, shape, row_of(shape.N))
        sums = lse + (work.batch * walk.heads + work.head) * walk.own_time
        gl.store(sums + rows, log_sum, mask=exist)
        work, place, turn = after, last, turn + 1


@gluon.jit
def fetch(q, k, v, walk, q_own, own, ring, shape):
    """The fetching warpgroup: of each row tile its queries, then its column tiles of keys and values."""
    place, turn = 0, 0
    work = find_work(walk, gl.program_id(0), shape)
    for number in range(gl.program_id(0), walk.count, gl.num_programs(0)):
        after = next_work(walk, number, work, shape)
        own.await_empty(turn)
        copy_own(q_own, turn % own.COUNT, q, walk, work, shape, shape.HEAD_DIM, shape.HEAD_PAD)
        own.fill(turn)
        place = fetch_tiles(k, v, (), walk, work, place, ring, shape)
        work, turn = after, turn + 1


@gluon.jit
def attention_forward_roles(q, k, v, out, lse, plan, scale_log2, sizes, count, flags: gl.constexpr):
    """out and lse of row tiles of queries."""
    shape = make_shape(flags)
    walk = make_walk(plan, sizes, count, query_extent(sizes, flags), key_extent(sizes, flags), flags)
    element: gl.constexpr = q.dtype.element_ty
    q_own = make_own(element, flags.TURNS, shape, shape.HEAD_PAD)
    own, ring = make_barriers(flags.TURNS, shape), make_ring(element, shape)
    given = out, lse, walk, q_own, own, ring, scale_log2, shape
    fetched = q, k, v, walk, q_own, own, ring, shape
    registers: gl.constexpr = worker_registers(flags.M, flags.REGISTERS)
    gl.warp_specialize(
        [(attend, (part, given)) for part in (0, 1, 2) if part < flags.M // 64] + [(fetch, fetched)],
        worker_warps(flags.M),
        registers,
    )
