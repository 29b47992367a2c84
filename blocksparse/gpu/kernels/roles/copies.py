"""What the fetching warpgroup asks for: rows and numbers by cp.async into shared memory, column tiles into the ring."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import async_copy, mbarrier

from .ring import (
    VECTOR,
    copied,
    fetched_places,
    fetched_rows,
    mask_number,
    mask_words,
    own_rows,
    unit,
    words_of,
)


@gluon.jit
def addresses(pointer, rows, heads, shape, DIM: gl.constexpr, PAD: gl.constexpr, layout: gl.constexpr):
    """(pointers [rows, PAD] into one head's rows, which of them are inside DIM, and where BOUNDED not of row -1)"""
    if shape.WIDE:
        rows = rows.to(gl.int64)
    column = gl.arange(0, PAD, layout=gl.SliceLayout(0, layout))[None, :]
    where = pointer + (rows[:, None] * (heads * DIM) + column)
    inside = column < DIM
    return where, inside & (rows >= 0)[:, None] if shape.BOUNDED else inside


@gluon.jit
def copy_rows(shared, pointer, rows, heads, shape, DIM: gl.constexpr, PAD: gl.constexpr):
    """Asks for rows of one head, zeros past DIM and where BOUNDED in row -1."""
    where, inside = addresses(pointer, rows, heads, shape, DIM, PAD, copied(PAD))
    if DIM == PAD and not shape.BOUNDED:
        async_copy.async_load(shared, where)
    else:
        async_copy.async_load(shared, where, mask=inside)


@gluon.jit
def copy_places(shared, statistics, places, exist, shape):
    """Asks for numbers of queries; BOUNDED: zero for those that do not exist."""
    if shape.BOUNDED:
        async_copy.async_load(shared, statistics + places, mask=exist)
    else:
        async_copy.async_load(shared, statistics + places)


@gluon.jit
def copy_own(own, slot, pointer, walk, work, shape, DIM: gl.constexpr, PAD: gl.constexpr):
    """Asks for the row tile's rows of one tensor."""
    units: gl.constexpr = shape.M // unit(shape.M)
    for number in gl.static_range(units):
        room = own.index(slot * units + number)
        rows = own_rows(walk, work, number, shape, gl.SliceLayout(1, copied(PAD)))
        head = pointer + (work.batch * walk.own_time * walk.heads + work.head) * DIM
        copy_rows(room, head, rows, walk.heads, shape, DIM, PAD)


@gluon.jit
def copy_words(ring, stage, words, shape):
    """Asks for a column tile's mask words."""
    for number in gl.static_range(shape.M // unit(shape.M)):
        rows = words + number * unit(shape.M) * (shape.TILE // 32)
        for word in gl.static_range(shape.N // 32):
            async_copy.async_load(words_of(ring, stage, word, number, shape), rows + word)


@gluon.jit
def fetch_tiles(x, y, statistics, walk, work, place, ring, shape):
    """Column tiles into the ring from `place` on, and into rings of their own what `statistics` names: pairs (ring,
    pointer). Gives the place behind them. Where there are statistics the columns are queries, of all heads that read
    the key head; else keys, of the one that the head reads.
    """
    READERS: gl.constexpr = shape.GROUP if len(statistics) > 0 else 1
    x_layout: gl.constexpr = gl.SliceLayout(1, copied(shape.HEAD_PAD))
    y_layout: gl.constexpr = gl.SliceLayout(1, copied(shape.VALUE_PAD))
    count, full = work.column_tiles(shape)
    if len(statistics) > 0:
        head = (work.batch * walk.other_time * walk.heads + work.head) * shape.GROUP
        heads = walk.heads if READERS == 1 else 1
    else:
        heads = walk.heads // shape.GROUP
        head = work.batch * walk.other_time * heads + work.head // shape.GROUP
    x += head * shape.HEAD_DIM
    y += head * shape.VALUE_DIM
    # Row and mask numbers are loaded a tile ahead: else every tile's copies would wait for the load of its numbers.
    rows = fetched_rows(walk, work, 0, count, shape, x_layout, READERS)
    number = mask_number(walk, work, 0, count, shape)
    if len(statistics) > 0:
        sums = (work.batch * walk.heads + work.head) * READERS * walk.other_time
        few = fetched_places(walk, work, 0, count, shape, VECTOR, READERS)
    for j in range(count):
        stage = (place + j) % shape.STAGES
        x_rows = rows
        rows = fetched_rows(walk, work, j + 1, count, shape, x_layout, READERS)
        words = mask_words(walk, number, j, shape)
        number = mask_number(walk, work, j + 1, count, shape)
        if len(statistics) > 0:
            places, exist = sums + few, few >= 0
            few = fetched_places(walk, work, j + 1, count, shape, VECTOR, READERS)
        mbarrier.wait(ring.empty.index(stage), (place + j) // shape.STAGES & 1 ^ 1)
        copy_rows(ring.x.index(stage), x, x_rows, heads, shape, shape.HEAD_DIM, shape.HEAD_PAD)
        if j >= full:
            copy_words(ring, stage, words, shape)
        for pair in gl.static_range(len(statistics)):
            copy_places(statistics[pair][0].index(stage), statistics[pair][1], places, exist, shape)
        async_copy.mbarrier_arrive(ring.x_full.index(stage), increment_count=False)
        y_rows = gl.convert_layout(x_rows, y_layout)
        copy_rows(ring.y.index(stage), y, y_rows, heads, shape, shape.VALUE_DIM, shape.VALUE_PAD)
        async_copy.mbarrier_arrive(ring.y_full.index(stage), increment_count=False)
    return place + count
