"""The key pass of the backward pass with warp roles; p and ds as in the plain kernel."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import warpgroup_mma, warpgroup_mma_wait

from ..primitives import LOG2_E, key_extent, query_extent
from .copies import copy_own, fetch_tiles
from .results import added, store_rows, through
from .ring import (
    EVERY,
    NONE,
    PLAIN,
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
    part_words,
    release,
    scores,
    sight,
    words_or,
)
from .walk import find_work, make_shape, make_walk, next_work, worker_registers, worker_warps


@gluon.jit
def fetch(q, k, v, dout, statistics, walk, k_own, v_own, own, ring, shape):
    """The fetching warpgroup: of each row tile its keys and values, then its column tiles of q, dout, lse and delta."""
    place, turn = 0, 0
    work = find_work(walk, gl.program_id(0), shape)
    for number in range(gl.program_id(0), walk.count, gl.num_programs(0)):
        after = next_work(walk, number, work, shape)
        own.await_empty(turn)
        copy_own(k_own, turn % own.COUNT, k, walk, work, shape, shape.HEAD_DIM, shape.HEAD_PAD)
        copy_own(v_own, turn % own.COUNT, v, walk, work, shape, shape.VALUE_DIM, shape.VALUE_PAD)
        own.fill(turn)
        place = fetch_tiles(q, dout, statistics, walk, work, place, ring, shape)
        work, turn = after, turn + 1


@gluon.jit
def products(s, dp, lse, delta, words, seen, scale_log2, shape, DTYPE: gl.constexpr, OWED: gl.constexpr):
    """(p, ds) as operands of products, 0 where rows do not see; seen: what `sight` says. s and dp are still in flight,
    and so are OWED products begun after them.
    """
    column: gl.constexpr = gl.SliceLayout(0, accumulator(shape.N))
    column_lse, column_delta = lse.load(column) * LOG2_E, delta.load(column)
    s = warpgroup_mma_wait(OWED + 1, [s])
    p = gl.exp2(s * scale_log2 - column_lse[None, :])
    dp = warpgroup_mma_wait(OWED, [dp])
    ds = p * (dp - column_delta[None, :])
    # Both, for the reason in ../backward.py: NaN in a query's lse and delta reaches all keys.
    if seen == SOME:
        p = hidden(p, words, shape, "0")
        ds = hidden(ds, words, shape, "0")
    p = gl.convert_layout(p.to(DTYPE), operand(shape.VALUE_PAD))
    return p, gl.convert_layout(ds.to(DTYPE), operand(shape.HEAD_PAD))


@gluon.jit
def gather_in_turn(
    keys, values, lse, delta, ring, PART: gl.constexpr, first, last, dk, dv, scale_log2, shape, MASKED: gl.constexpr
):  # fmt: skip
    """(dk + ds q, dv + p dout) over the tiles of queries at places first .. last, one after the other; those that see
    none of these keys are skipped.
    """
    for j in range(first, last):
        stage = j % shape.STAGES
        await_x(ring, j, last, shape)
        seen = sight(ring, stage, PART, shape) if MASKED else EVERY
        if seen != NONE:
            words = part_words(ring, stage, PART, shape) if MASKED else ()
            s = scores(keys, ring.x.index(stage), shape)
            await_y(ring, j, shape)
            dp = scores(values, ring.y.index(stage), shape)
            p, ds = products(
                s, dp, lse.index(stage), delta.index(stage), words, seen, scale_log2, shape, ring.x.dtype, 0
            )
            dv = warpgroup_mma(p, ring.y.index(stage), dv, is_async=True)
            dk = warpgroup_mma(ds, ring.x.index(stage), dk, is_async=True)
            dk, dv = warpgroup_mma_wait(0, [dk, dv])
        else:
            await_y(ring, j, shape)
        release(ring, stage)
    return dk, dv


@gluon.jit
def gather(
    keys, values, lse, delta, ring, PART: gl.constexpr, first, last, end, p, ds, dk, dv, scale_log2, shape,
    MASKED: gl.constexpr,
):  # fmt: skip
    """p and ds of tiles first .. last of queries, and meanwhile dv + p dout, dk + ds q of the tile before each.

    Built as `absorb` in forward.py, where the place of await_x is explained.
    """
    for j in range(first, last):
        stage = j % shape.STAGES
        before = (j + shape.STAGES - 1) % shape.STAGES
        s = scores(keys, ring.x.index(stage), shape)
        await_y(ring, j, shape)
        dp = scores(values, ring.y.index(stage), shape)
        dv = warpgroup_mma(p, ring.y.index(before), dv, is_async=True)
        dk = warpgroup_mma(ds, ring.x.index(before), dk, is_async=True)
        words = part_words(ring, stage, PART, shape) if MASKED else ()
        seen: gl.constexpr = SOME if MASKED else EVERY
        fresh_p, fresh_ds = products(
            s, dp, lse.index(stage), delta.index(stage), words, seen, scale_log2, shape, ring.x.dtype, 2
        )
        await_x(ring, j + 1, end, shape)
        dk, dv, p, ds = warpgroup_mma_wait(0, [dk, dv, fresh_p, fresh_ds])
        release(ring, before)
    return p, ds, dk, dv


@gluon.jit
def gather_overlapping(
    keys, values, lse, delta, ring, PART: gl.constexpr, first, full, last, dk, dv, scale_log2, shape
):
    """(dk + ds q, dv + p dout) over tiles first .. last of queries; those from `full` on have masks."""
    if first < last:
        stage = first % shape.STAGES
        await_x(ring, first, last, shape)
        s = scores(keys, ring.x.index(stage), shape)
        await_y(ring, first, shape)
        dp = scores(values, ring.y.index(stage), shape)
        words = words_or(ring, stage, PART, shape, -(first < full).to(gl.int32))
        p, ds = products(
            s, dp, lse.index(stage), delta.index(stage), words, SOME, scale_log2, shape, ring.x.dtype, 0
        )
        await_x(ring, first + 1, last, shape)
        p, ds, dk, dv = gather(
            keys, values, lse, delta, ring, PART, first + 1, full, last, p, ds, dk, dv, scale_log2, shape, False,
        )  # fmt: skip
        masked = gl.maximum(full, first + 1)
        p, ds, dk, dv = gather(
            keys, values, lse, delta, ring, PART, masked, last, last, p, ds, dk, dv, scale_log2, shape, True
        )
        stage = (last - 1) % shape.STAGES
        dv = warpgroup_mma(p, ring.y.index(stage), dv, is_async=True)
        dk = warpgroup_mma(ds, ring.x.index(stage), dk, is_async=True)
        dk, dv = warpgroup_mma_wait(0, [dk, dv])
        release(ring, stage)
    return dk, dv


@gluon.jit
def differentiate(PART: gl.constexpr, given):
    """dk and dv of 64 keys of each row tile; lse and delta are rings."""
    dk_out, dv_out, walk, k_own, v_own, own, lse, delta, ring, scale, scale_log2, shape = given
    place, turn = 0, 0
    work = find_work(walk, gl.program_id(0), shape)
    for number in range(gl.program_id(0), walk.count, gl.num_programs(0)):
        after = next_work(walk, number, work, shape)
        dk_granules = part_granules(walk, work, PART, shape, gl.SliceLayout(1, copied(shape.HEAD_PAD)))
        dv_granules = part_granules(walk, work, PART, shape, gl.SliceLayout(1, copied(shape.VALUE_PAD)))
        count, unmasked = work.column_tiles(shape)
        full, last = place + unmasked, place + count
        dk = gl.zeros([64, shape.HEAD_PAD], gl.float32, accumulator(shape.HEAD_PAD))
        dv = gl.zeros([64, shape.VALUE_PAD], gl.float32, accumulator(shape.VALUE_PAD))
        keys, values = (
            part_of(k_own, turn, PART, own.COUNT, shape),
            part_of(v_own, turn, PART, own.COUNT, shape),
        )
        own.await_full(turn)
        if shape.OVERLAP:
            dk, dv = gather_overlapping(
                keys, values, lse, delta, ring, PART, place, full, last, dk, dv, scale_log2, shape
            )
        else:
            dk, dv = gather_in_turn(
                keys, values, lse, delta, ring, PART, place, full, dk, dv, scale_log2, shape, False
            )
            dk, dv = gather_in_turn(
                keys, values, lse, delta, ring, PART, full, last, dk, dv, scale_log2, shape, True
            )
        dk = added(
            dk * scale, dk_out, keys, dk_granules, walk, work, PART, shape, shape.HEAD_DIM, shape.HEAD_PAD
        )
        dv = added(dv, dv_out, values, dv_granules, walk, work, PART, shape, shape.VALUE_DIM, shape.VALUE_PAD)
        dk = through(keys, dk.to(dk_out.dtype.element_ty), copied(shape.HEAD_PAD))
        dv = through(values, dv.to(dv_out.dtype.element_ty), copied(shape.VALUE_PAD))
        own.release(turn)
        store_rows(dk_out, dk, dk_granules, walk, work, PART, shape, shape.HEAD_DIM, shape.HEAD_PAD)
        store_rows(dv_out, dv, dv_granules, walk, work, PART, shape, shape.VALUE_DIM, shape.VALUE_PAD)
        work, place, turn = after, last, turn + 1


@gluon.jit
def attention_key_gradient_roles(
    q, k, v, lse, dout, delta, dk, dv, plan, scale, scale_log2, sizes, count, flags: gl.constexpr
):
    """dk and dv of row tiles of keys; their column tiles are queries."""
    shape = make_shape(flags)
    walk = make_walk(plan, sizes, count, key_extent(sizes, flags), query_extent(sizes, flags), flags)
    element: gl.constexpr = q.dtype.element_ty
    k_own = make_own(element, flags.TURNS, shape, shape.HEAD_PAD)
    v_own = make_own(element, flags.TURNS, shape, shape.VALUE_PAD)
    own, ring = make_barriers(flags.TURNS, shape), make_ring(element, shape)
    lse_ring = gl.allocate_shared_memory(gl.float32, [flags.STAGES, flags.COLUMNS], PLAIN)
    delta_ring = gl.allocate_shared_memory(gl.float32, [flags.STAGES, flags.COLUMNS], PLAIN)
    statistics = (lse_ring, lse), (delta_ring, delta)
    given = dk, dv, walk, k_own, v_own, own, lse_ring, delta_ring, ring, scale, scale_log2, shape
    fetched = q, k, v, dout, statistics, walk, k_own, v_own, own, ring, shape
    registers: gl.constexpr = worker_registers(flags.M, flags.REGISTERS)
    gl.warp_specialize(
        [(differentiate, (part, given)) for part in (0, 1, 2) if part < flags.M // 64] + [(fetch, fetched)],
        worker_warps(flags.M),
        registers,
    )
