"""The query pass of the backward pass with warp roles; p, ds and delta as in the plain kernel."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    warpgroup_mma,
    warpgroup_mma_wait,
)

from ..primitives import LOG2_E, key_extent, query_extent
from .again import products, walk_again
from .copies import copy_own, copy_places, fetch_tiles
from .results import added, store_rows, through
from .ring import (
    EVERY,
    NONE,
    PLAIN,
    SOME,
    VECTOR,
    accumulator,
    await_x,
    await_y,
    copied,
    make_barriers,
    make_numbers,
    make_own,
    make_ring,
    operand,
    own_rows,
    part_granules,
    part_of,
    part_rows,
    part_words,
    release,
    row_of,
    scores,
    sight,
    unit,
    words_or,
)
from .walk import find_work, kept, make_shape, make_walk, next_work, worker_registers, worker_warps


@gluon.aggregate
class Own:
    """Room for row tiles' own rows and sums: for TURNS of them, but for one of `out`, which only delta needs, at the
    start.
    """

    q: gl.shared_memory_descriptor
    dout: gl.shared_memory_descriptor
    lse: gl.shared_memory_descriptor
    dlse: gl.shared_memory_descriptor
    out: gl.shared_memory_descriptor


@gluon.jit
def fetch(q, k, v, out, lse, dout, dlse, walk, own, inputs, outputs, ring, shape):
    """The fetching warpgroup: of each row tile its own rows and sums, then its column tiles of keys and values."""
    units: gl.constexpr = shape.M // unit(shape.M)
    place, turn = 0, 0
    work = find_work(walk, gl.program_id(0), shape)
    for number in range(gl.program_id(0), walk.count, gl.num_programs(0)):
        after = next_work(walk, number, work, shape)
        head = (work.batch * walk.heads + work.head) * walk.own_time
        rows = ()
        for part in gl.static_range(units):
            rows += (own_rows(walk, work, part, shape, VECTOR),)
        slot = turn % inputs.COUNT
        inputs.await_empty(turn)
        copy_own(own.q, slot, q, walk, work, shape, shape.HEAD_DIM, shape.HEAD_PAD)
        copy_own(own.dout, slot, dout, walk, work, shape, shape.VALUE_DIM, shape.VALUE_PAD)
        for part in gl.static_range(units):
            copy_places(own.lse.index(slot * units + part), lse, head + rows[part], rows[part] >= 0, shape)
            copy_places(own.dlse.index(slot * units + part), dlse, head + rows[part], rows[part] >= 0, shape)
        inputs.fill(turn)
        outputs.await_empty(turn)
        copy_own(own.out, 0, out, walk, work, shape, shape.VALUE_DIM, shape.VALUE_PAD)
        outputs.fill(turn)
        place = fetch_tiles(k, v, (), walk, work, place, ring, shape)
        work, turn = after, turn + 1


@gluon.jit
def gather_in_turn(
    queries, gradients, ring, PART: gl.constexpr, first, last, lse, delta, dq, scale_log2, shape, MASKED: gl.constexpr
):  # fmt: skip
    """dq + ds k over the tiles at places first .. last, one after the other; those that these rows do not see are
    skipped.
    """
    for j in range(first, last):
        stage = j % shape.STAGES
        await_x(ring, j, last, shape)
        seen = sight(ring, stage, PART, shape) if MASKED else EVERY
        if seen != NONE:
            words = part_words(ring, stage, PART, shape) if MASKED else ()
            s = scores(queries, ring.x.index(stage), shape)
            await_y(ring, j, shape)
            dp = scores(gradients, ring.y.index(stage), shape)
            ds = products(s, dp, lse, delta, words, seen, scale_log2, shape, 0)
            ds = gl.convert_layout(ds.to(ring.x.dtype), operand(shape.HEAD_PAD))
            dq = warpgroup_mma_wait(0, [warpgroup_mma(ds, ring.x.index(stage), dq, is_async=True)])
        else:
            await_y(ring, j, shape)
        release(ring, stage)
    return dq


@gluon.jit
def gather(
    queries, gradients, ring, PART: gl.constexpr, first, last, end, lse, delta, ds, dq, scale_log2, shape,
    MASKED: gl.constexpr,
):  # fmt: skip
    """ds of tiles first .. last, and meanwhile dq + ds k of the tile before each. Tile `first` of k has arrived.

    Built as `absorb` in forward.py, where the place of await_x is explained.
    """
    for j in range(first, last):
        stage = j % shape.STAGES
        before = (j + shape.STAGES - 1) % shape.STAGES
        s = scores(queries, ring.x.index(stage), shape)
        await_y(ring, j, shape)
        dp = scores(gradients, ring.y.index(stage), shape)
        dq = warpgroup_mma(ds, ring.x.index(before), dq, is_async=True)
        words = part_words(ring, stage, PART, shape) if MASKED else ()
        fresh = products(s, dp, lse, delta, words, SOME if MASKED else EVERY, scale_log2, shape, 1)
        fresh = gl.convert_layout(fresh.to(ring.x.dtype), operand(shape.HEAD_PAD))
        await_x(ring, j + 1, end, shape)
        dq, ds = warpgroup_mma_wait(0, [dq, fresh])
        release(ring, before)
    return ds, dq


@gluon.jit
def gather_overlapping(
    queries, gradients, ring, PART: gl.constexpr, first, full, last, lse, delta, dq, scale_log2, shape
):
    """dq + ds k over tiles first .. last; those from `full` on have masks."""
    if first < last:
        stage = first % shape.STAGES
        await_x(ring, first, last, shape)
        s = scores(queries, ring.x.index(stage), shape)
        await_y(ring, first, shape)
        dp = scores(gradients, ring.y.index(stage), shape)
        words = words_or(ring, stage, PART, shape, -(first < full).to(gl.int32))
        ds = products(s, dp, lse, delta, words, SOME, scale_log2, shape, 0)
        ds = gl.convert_layout(ds.to(ring.x.dtype), operand(shape.HEAD_PAD))
        await_x(ring, first + 1, last, shape)
        ds, dq = gather(
            queries, gradients, ring, PART, first + 1, full, last, lse, delta, ds, dq, scale_log2, shape, False,
        )  # fmt: skip
        masked = gl.maximum(full, first + 1)
        ds, dq = gather(
            queries, gradients, ring, PART, masked, last, last, lse, delta, ds, dq, scale_log2, shape, True
        )
        stage = (last - 1) % shape.STAGES
        dq = warpgroup_mma_wait(0, [warpgroup_mma(ds, ring.x.index(stage), dq, is_async=True)])
        release(ring, stage)
    return dq


@gluon.jit
def differentiate(PART: gl.constexpr, given):
    """A computing warpgroup: delta and dq of 64 queries of each row tile; into `poison`, whether some dq holds NaN;
    where passes are joined, 1 + the number of the first row tile with one.
    """
    delta, dq_out, walk, own, inputs, outputs, ring, poison, scale, scale_log2, shape = given
    read: gl.constexpr = copied(shape.VALUE_PAD)
    place, turn, poisoned = 0, 0, 0
    work = find_work(walk, gl.program_id(0), shape)
    for number in range(gl.program_id(0), walk.count, gl.num_programs(0)):
        after = next_work(walk, number, work, shape)
        dq_granules = part_granules(walk, work, PART, shape, gl.SliceLayout(1, copied(shape.HEAD_PAD)))
        granules = part_granules(walk, work, PART, shape, row_of(shape.N))
        count, unmasked = work.column_tiles(shape)
        full, last = place + unmasked, place + count
        queries, gradients = (
            part_of(own.q, turn, PART, inputs.COUNT, shape),
            part_of(own.dout, turn, PART, inputs.COUNT, shape),
        )
        inputs.await_full(turn)
        outputs.await_full(turn)
        out = part_of(own.out, 0, PART, 1, shape).load(read).to(gl.float32)
        row_delta = gl.convert_layout(gl.sum(out * gradients.load(read).to(gl.float32), 1), row_of(shape.N))
        outputs.release(turn)
        rows, exist = part_rows(granules, walk, work, PART, shape, row_of(shape.N))
        row_delta -= part_of(own.dlse, turn, PART, inputs.COUNT, shape).load(row_of(shape.N))
        gl.store(delta + (work.batch * walk.heads + work.head) * walk.own_time + rows, row_delta, mask=exist)
        row_lse = part_of(own.lse, turn, PART, inputs.COUNT, shape).load(row_of(shape.N))
        row_lse = gl.where(exist, row_lse, float("inf")) * LOG2_E  # p and ds are 0 where no row is

        dq = gl.zeros([64, shape.HEAD_PAD], gl.float32, accumulator(shape.HEAD_PAD))
        if shape.OVERLAP:
            dq = gather_overlapping(
                queries, gradients, ring, PART, place, full, last, row_lse, row_delta, dq, scale_log2, shape
            )
        else:
            dq = gather_in_turn(
                queries, gradients, ring, PART, place, full, row_lse, row_delta, dq, scale_log2, shape, False
            )
            dq = gather_in_turn(
                queries, gradients, ring, PART, full, last, row_lse, row_delta, dq, scale_log2, shape, True
            )
        if shape.JOINED:
            # What has been added to cannot be computed again: from the first NaN on nothing is stored, and walk_again
            # starts there.
            bad = gl.max(gl.max((dq != dq).to(gl.int32), 1), 0)
            poisoned = gl.where((poisoned == 0) & (bad != 0), number + 1, poisoned)
        else:
            poisoned |= gl.max(gl.max((dq != dq).to(gl.int32), 1), 0)
        target = kept(work, poisoned == 0) if shape.JOINED else work
        dq = added(
            dq * scale,
            dq_out,
            queries,
            dq_granules,
            walk,
            target,
            PART,
            shape,
            shape.HEAD_DIM,
            shape.HEAD_PAD,
        )
        result = through(queries, dq.to(dq_out.dtype.element_ty), copied(shape.HEAD_PAD))
        inputs.release(turn)
        store_rows(dq_out, result, dq_granules, walk, target, PART, shape, shape.HEAD_DIM, shape.HEAD_PAD)
        work, place, turn = after, last, turn + 1
    poison.index(PART).store(gl.full([1], poisoned, gl.int32, VECTOR))


@gluon.jit
def attention_query_gradient_roles(
    q, k, v, out, lse, dout, dlse, delta, dq, plan, scale, scale_log2, sizes, count, flags: gl.constexpr
):
    """delta and dq of row tiles of queries."""
    shape = make_shape(flags)
    walk = make_walk(plan, sizes, count, query_extent(sizes, flags), key_extent(sizes, flags), flags)
    element: gl.constexpr = q.dtype.element_ty
    own = Own(
        make_own(element, flags.TURNS, shape, shape.HEAD_PAD),
        make_own(element, flags.TURNS, shape, shape.VALUE_PAD),
        make_numbers(flags.TURNS, shape),
        make_numbers(flags.TURNS, shape),
        make_own(element, 1, shape, shape.VALUE_PAD),
    )
    inputs, outputs, ring = (
        make_barriers(flags.TURNS, shape),
        make_barriers(1, shape),
        make_ring(element, shape),
    )
    poison = gl.allocate_shared_memory(gl.int32, [shape.M // 64, 1], PLAIN)
    given = delta, dq, walk, own, inputs, outputs, ring, poison, scale, scale_log2, shape
    fetched = q, k, v, out, lse, dout, dlse, walk, own, inputs, outputs, ring, shape
    registers: gl.constexpr = worker_registers(flags.M, flags.REGISTERS, flags.TURNS == 1)
    gl.warp_specialize(
        [(differentiate, (part, given)) for part in (0, 1, 2) if part < flags.M // 64] + [(fetch, fetched)],
        worker_warps(flags.M),
        registers,
    )
    # A NaN key makes dq NaN in all rows of its row tiles, by 0 * NaN, also in those that do not see it. Asking for it
    # in the loop would cost every call; so a program that finds NaN in some dq computes all of its own once more.
    poisoned = gl.max(poison.index(0).load(VECTOR), 0)
    for part in gl.static_range(1, flags.M // 64):
        poisoned += gl.max(poison.index(part).load(VECTOR), 0)
    if poisoned != 0:
        walk_again(q, k, v, lse, dout, delta, dq, walk, own, ring, poison, scale, scale_log2, shape)
