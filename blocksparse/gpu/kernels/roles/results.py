"""Rows of results between registers and memory, with warp roles."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared

from .copies import addresses
from .ring import (
    accumulator,
    copied,
    part_rows,
)


@gluon.jit
def through(shared, result, layout: gl.constexpr):
    """`result` in another layout, by way of the own rows in shared memory, which are no longer needed.

    In the accumulator's layout a thread has 16 bytes of a row at a time: stores from there write rows in pieces, which
    takes up to a third more time (benchmarks/LOG.md, section 13).
    """
    shared.store(result)
    fence_async_shared()
    return shared.load(layout)


@gluon.jit
def store_rows(
    pointer, result, granules, walk, work, PART: gl.constexpr, shape, DIM: gl.constexpr, PAD: gl.constexpr
):
    """Writes 64 rows of one head, in whole rows."""
    rows, exist = part_rows(granules, walk, work, PART, shape, gl.SliceLayout(1, copied(PAD)))
    pointer = pointer + (work.batch * walk.own_time * walk.heads + work.head) * DIM
    where, inside = addresses(pointer, rows, walk.heads, shape, DIM, PAD, copied(PAD))
    gl.store(where, result, mask=exist[:, None] & inside)


@gluon.jit
def loaded_part(
    pointer, granules, walk, work, PART: gl.constexpr, shape, DIM: gl.constexpr, PAD: gl.constexpr
):
    """64 rows of one head, as they are in memory."""
    rows, exist = part_rows(granules, walk, work, PART, shape, gl.SliceLayout(1, copied(PAD)))
    pointer = pointer + (work.batch * walk.own_time * walk.heads + work.head) * DIM
    where, inside = addresses(pointer, rows, walk.heads, shape, DIM, PAD, copied(PAD))
    return gl.load(where, mask=exist[:, None] & inside, other=0.0)


@gluon.jit
def added(
    result,
    pointer,
    shared,
    granules,
    walk,
    work,
    PART: gl.constexpr,
    shape,
    DIM: gl.constexpr,
    PAD: gl.constexpr,
):
    """result, and where passes are joined the sum with what other passes have left; by way of own rows that are done
    with.
    """
    if shape.JOINED:
        old = loaded_part(pointer, granules, walk, work, PART, shape, DIM, PAD)
        result += through(shared, old, accumulator(PAD)).to(gl.float32)
    return result


@gluon.jit
def loaded_rows(pointer, rows, time, head, heads, work, shape, DIM: gl.constexpr, PAD: gl.constexpr):
    """Rows of head `head` of a tensor with `time` rows and `heads` heads, by their numbers."""
    pointer = pointer + (work.batch * time * heads + head) * DIM
    where, inside = addresses(pointer, rows, heads, shape, DIM, PAD, copied(PAD))
    return gl.load(where, mask=inside, other=0.0)
