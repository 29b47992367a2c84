"""dq of a program's row tiles once more, where some of it is NaN: only keys that a row sees may make its dq NaN."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from ..primitives import LOG2_E
from .results import loaded_part, loaded_rows, store_rows
from .ring import (
    SOME,
    VECTOR,
    accumulator,
    column_rows,
    copied,
    hidden,
    mask_number,
    mask_words,
    operand,
    own_rows,
    part_granules,
    part_of,
    part_rows,
    part_words,
    row_of,
    scores,
    unit,
    words_of,
)
from .walk import find_work, kept


@gluon.jit
def products(s, dp, lse, delta, words, seen, scale_log2, shape, OWED: gl.constexpr):
    """ds, 0 where rows do not see; seen: what `sight` says. s and dp are still in flight, and so are OWED products
    begun after them.
    """
    s = warpgroup_mma_wait(OWED + 1, [s])
    p = gl.exp2(s * scale_log2 - lse[:, None])
    dp = warpgroup_mma_wait(OWED, [dp])
    ds = p * (dp - delta[:, None])
    if seen == SOME:
        ds = hidden(ds, words, shape, "0")
    return ds


@gluon.jit
def differentiate_again(
    PART: gl.constexpr, k, v, lse, delta, dq_out, walk, work, own, ring, scale, scale_log2, shape
):
    """dq of 64 queries, NaN and infinite keys taken as 0 in its product with ds, as FINITE does in ../backward.py.

    Slow and simple, since it is rare: everything is loaded in place, by the warpgroup that is left.
    """
    x_layout: gl.constexpr = gl.SliceLayout(1, copied(shape.HEAD_PAD))
    y_layout: gl.constexpr = gl.SliceLayout(1, copied(shape.VALUE_PAD))
    granules = part_granules(walk, work, PART, shape, row_of(shape.N))
    rows, exist = part_rows(granules, walk, work, PART, shape, row_of(shape.N))
    sums = (work.batch * walk.heads + work.head) * walk.own_time + rows
    row_delta = gl.load(delta + sums, mask=exist, other=0.0)
    row_lse = gl.load(lse + sums, mask=exist, other=float("inf")) * LOG2_E
    dq = gl.zeros([64, shape.HEAD_PAD], gl.float32, accumulator(shape.HEAD_PAD))
    queries, gradients = part_of(own.q, 0, PART, 1, shape), part_of(own.dout, 0, PART, 1, shape)
    count, full = work.column_tiles(shape)
    key_head = work.head // shape.GROUP, walk.heads // shape.GROUP
    for j in range(count):
        x_rows = column_rows(walk, work, j, count, shape, x_layout)
        y_rows = column_rows(walk, work, j, count, shape, y_layout)
        keys = loaded_rows(k, x_rows, walk.other_time, *key_head, work, shape, shape.HEAD_DIM, shape.HEAD_PAD)
        values = loaded_rows(
            v, y_rows, walk.other_time, *key_head, work, shape, shape.VALUE_DIM, shape.VALUE_PAD
        )
        ring.x.index(0).store(keys)
        ring.x.index(1).store(gl.where(gl.maximum(keys, -keys) < float("inf"), keys, 0.0))
        ring.y.index(0).store(values)
        where = mask_words(walk, mask_number(walk, work, j, count, shape), j, shape)
        for number in gl.static_range(shape.M // unit(shape.M)):
            first = where + number * unit(shape.M) * (shape.TILE // 32)
            for word in gl.static_range(shape.N // 32):
                masked = gl.full([unit(shape.M)], 0, gl.int32, VECTOR) + j >= full
                words_of(ring, 0, word, number, shape).store(gl.load(first + word, mask=masked, other=-1))
        fence_async_shared()
        gl.barrier()
        s, dp = scores(queries, ring.x.index(0), shape), scores(gradients, ring.y.index(0), shape)
        words = part_words(ring, 0, PART, shape)
        ds = products(s, dp, row_lse, row_delta, words, SOME, scale_log2, shape, 0)
        ds = gl.convert_layout(ds.to(ring.x.dtype), operand(shape.HEAD_PAD))
        dq = warpgroup_mma_wait(0, [warpgroup_mma(ds, ring.x.index(1), dq, is_async=True)])
        gl.barrier()
    granules = part_granules(walk, work, PART, shape, x_layout)
    dq = dq * scale
    if shape.JOINED:
        old = loaded_part(dq_out, granules, walk, work, PART, shape, shape.HEAD_DIM, shape.HEAD_PAD)
        dq += gl.convert_layout(old, accumulator(shape.HEAD_PAD)).to(gl.float32)
    result = gl.convert_layout(dq.to(dq_out.dtype.element_ty), copied(shape.HEAD_PAD))
    store_rows(dq_out, result, granules, walk, work, PART, shape, shape.HEAD_DIM, shape.HEAD_PAD)


@gluon.jit
def walk_again(q, k, v, lse, dout, delta, dq, walk, own, ring, poison, scale, scale_log2, shape):
    """dq of all row tiles of the program once more, by the four warps that go on after warp_specialize; where passes
    are joined, of those that were not stored.
    """
    x_layout: gl.constexpr = gl.SliceLayout(1, copied(shape.HEAD_PAD))
    y_layout: gl.constexpr = gl.SliceLayout(1, copied(shape.VALUE_PAD))
    for number in range(gl.program_id(0), walk.count, gl.num_programs(0)):
        work = find_work(walk, number, shape)
        head = work.head, walk.heads
        for part in gl.static_range(shape.M // unit(shape.M)):
            x_rows = own_rows(walk, work, part, shape, x_layout)
            y_rows = own_rows(walk, work, part, shape, y_layout)
            queries = loaded_rows(
                q, x_rows, walk.own_time, *head, work, shape, shape.HEAD_DIM, shape.HEAD_PAD
            )
            own.q.index(part).store(queries)
            slopes = loaded_rows(
                dout, y_rows, walk.own_time, *head, work, shape, shape.VALUE_DIM, shape.VALUE_PAD
            )
            own.dout.index(part).store(slopes)
        for part in gl.static_range(shape.M // 64):
            first = gl.max(poison.index(part).load(VECTOR), 0) if shape.JOINED else 1
            target = kept(work, (first != 0) & (number + 1 >= first)) if shape.JOINED else work
            differentiate_again(part, k, v, lse, delta, dq, walk, target, own, ring, scale, scale_log2, shape)
