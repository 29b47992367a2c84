"""What the kernels share: the ring of column tiles, where a row tile's rows and masks are, scores and who sees whom.

Barriers: an mbarrier counts arrivals and, each time all have come, changes its phase, 0 or 1. Use number u of a buffer
(u = place // STAGES, or turn // COUNT) ends phase u & 1 of its barriers. Who waits for `full` waits for the end of
phase u & 1; who waits for `empty`, for that of the use before, u & 1 ^ 1, which at the first use counts as over.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    async_copy,
    mbarrier,
    warpgroup_mma,
)

from ..primitives import tensor_rows
from .readers import reader_rows

VECTOR = gl.constexpr(gl.BlockedLayout([1], [32], [4], [0]))
WHOLE = gl.constexpr(gl.BlockedLayout([2], [32], [4], [0]))  # 64 numbers, all of them in each warp
PLAIN = gl.constexpr(gl.SwizzledSharedLayout(1, 1, 1, order=[0]))

EVERY, NONE, SOME = gl.constexpr(1), gl.constexpr(2), gl.constexpr(3)  # what `sight` says


@gluon.constexpr_function
def accumulator(columns):
    """The layout of [64, columns] in a warpgroup's registers."""
    return gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, columns, 16])


@gluon.constexpr_function
def row_of(columns):
    return gl.SliceLayout(1, accumulator(columns))


@gluon.constexpr_function
def operand(columns):
    """The layout of a product's left side in registers, of a result [64, columns]."""
    return gl.DotOperandLayout(0, accumulator(columns), 2)


@gluon.constexpr_function
def copied(pad):
    """The layout of rows of `pad` numbers in a warpgroup that copies: 16 bytes a thread."""
    return gl.BlockedLayout([1, 8], [256 // pad, pad // 8], [4, 1], [1, 0])


@gluon.constexpr_function
def unit(rows):
    """How many of a row tile's rows are copied at a time: shapes are powers of two, and 192 is none."""
    return 128 if rows % 128 == 0 else 64


@gluon.aggregate
class Ring:
    """STAGES column tiles in flight: rows of x and of y (keys and values, or queries and their gradients), mask words
    (N / 32 vectors [M] a tile), barriers.

    A column tile at place j is in stage j % STAGES. Places count on from one row tile of the program to the next.
    """

    x: gl.shared_memory_descriptor
    y: gl.shared_memory_descriptor
    words: gl.shared_memory_descriptor
    x_full: gl.shared_memory_descriptor
    y_full: gl.shared_memory_descriptor
    empty: gl.shared_memory_descriptor


@gluon.aggregate
class Barriers:
    """The barriers of COUNT buffers, taken in turn, for what the fetching warpgroup copies of a row tile's own rows."""

    full: gl.shared_memory_descriptor
    empty: gl.shared_memory_descriptor
    COUNT: gl.constexpr

    @gluon.jit
    def await_full(self, turn):
        mbarrier.wait(self.full.index(turn % self.COUNT), turn // self.COUNT & 1)

    @gluon.jit
    def await_empty(self, turn):
        mbarrier.wait(self.empty.index(turn % self.COUNT), turn // self.COUNT & 1 ^ 1)

    @gluon.jit
    def fill(self, turn):
        """Arrives once the copies that this thread has asked for have come."""
        async_copy.mbarrier_arrive(self.full.index(turn % self.COUNT), increment_count=False)

    @gluon.jit
    def release(self, turn):
        mbarrier.arrive(self.empty.index(turn % self.COUNT), count=1)


@gluon.jit
def make_barriers(COUNT: gl.constexpr, shape):
    """`full` counts all 128 fetching threads, each when its copies have come; `empty` the computing warpgroups."""
    barriers = Barriers(
        mbarrier.allocate_mbarrier(batch=COUNT), mbarrier.allocate_mbarrier(batch=COUNT), COUNT
    )
    for turn in gl.static_range(COUNT):
        mbarrier.init(barriers.full.index(turn), count=128)
        mbarrier.init(barriers.empty.index(turn), count=shape.M // 64)
    return barriers


@gluon.jit
def make_ring(element: gl.constexpr, shape):
    gl.static_assert(
        shape.STAGES >= 3 or not shape.OVERLAP,
        "overlapping products hold two of STAGES: with fewer than 3 they wait",
    )
    x_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([shape.N, shape.HEAD_PAD], element)
    y_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([shape.N, shape.VALUE_PAD], element)
    words: gl.constexpr = shape.STAGES * (shape.N // 32) * (shape.M // unit(shape.M))
    ring = Ring(
        gl.allocate_shared_memory(element, [shape.STAGES, shape.N, shape.HEAD_PAD], x_layout),
        gl.allocate_shared_memory(element, [shape.STAGES, shape.N, shape.VALUE_PAD], y_layout),
        gl.allocate_shared_memory(gl.int32, [words, unit(shape.M)], PLAIN),
        mbarrier.allocate_mbarrier(batch=shape.STAGES),
        mbarrier.allocate_mbarrier(batch=shape.STAGES),
        mbarrier.allocate_mbarrier(batch=shape.STAGES),
    )
    for stage in gl.static_range(shape.STAGES):
        mbarrier.init(ring.x_full.index(stage), count=128)
        mbarrier.init(ring.y_full.index(stage), count=128)
        mbarrier.init(ring.empty.index(stage), count=shape.M // 64)
    return ring


@gluon.jit
def make_own(element: gl.constexpr, COUNT: gl.constexpr, shape, PAD: gl.constexpr):
    """Room for COUNT row tiles' own rows of one tensor, a unit of rows behind the other."""
    layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([unit(shape.M), PAD], element)
    return gl.allocate_shared_memory(
        element, [COUNT * (shape.M // unit(shape.M)), unit(shape.M), PAD], layout
    )


@gluon.jit
def make_numbers(COUNT: gl.constexpr, shape):
    """Room for a float32 of each of COUNT row tiles' own rows."""
    return gl.allocate_shared_memory(gl.float32, [COUNT * (shape.M // unit(shape.M)), unit(shape.M)], PLAIN)


@gluon.jit
def part_of(own, turn, PART: gl.constexpr, COUNT: gl.constexpr, shape):
    """A computing warpgroup's 64 of the rows in shared memory."""
    units: gl.constexpr = shape.M // unit(shape.M)
    first: gl.constexpr = PART * 64
    return own.index(turn % COUNT * units + first // unit(shape.M)).slice(first % unit(shape.M), 64, dim=0)


@gluon.jit
def gathered_rows(
    granules, j, last, time, plan_rows, stride, COUNT: gl.constexpr, shape, layout: gl.constexpr
):
    """Tensor rows of row or column tile j, int32 [COUNT]; the first ones from `last` on. BOUNDED: -1 where there is no
    such row.
    """
    n = gl.arange(0, COUNT, layout=layout)
    place = j * COUNT
    granules += place // shape.GRANULE
    if COUNT // shape.GRANULE <= 4:
        granule = n * 0 + gl.load(granules, mask=j < last, other=0)
        for run in gl.static_range(1, COUNT // shape.GRANULE):
            number = gl.load(granules + run, mask=j < last, other=0)
            granule = gl.where(n >= run * shape.GRANULE, number, granule)
    else:
        granule = gl.load(granules + n // shape.GRANULE, mask=n * 0 + j < last, other=0)
    first = tensor_rows(granule * shape.GRANULE, plan_rows, stride, shape.PERMUTED)
    within = (place % shape.GRANULE + n) % shape.GRANULE
    if shape.PERMUTED:
        within *= stride
    rows = first + within
    return gl.where(rows < time, rows, -1) if shape.BOUNDED else rows


@gluon.jit
def own_rows(walk, work, UNIT: gl.constexpr, shape, layout: gl.constexpr):
    """Tensor rows of one of the row tile's units."""
    number = work.tile * (shape.M // unit(shape.M)) + UNIT
    return gathered_rows(
        walk.rows, number, number + 1, walk.own_time, walk.own_rows, work.stride, unit(shape.M), shape, layout
    )


@gluon.jit
def part_granules(walk, work, PART: gl.constexpr, shape, layout: gl.constexpr):
    """The granule number of each of a warpgroup's 64 rows: loaded at the start of a row tile, so that part_rows, at its
    end, does not wait for memory.
    """
    row = PART * 64 + gl.arange(0, 64, layout=layout)
    return gl.load(walk.rows + work.tile * (shape.M // shape.GRANULE) + row // shape.GRANULE)


@gluon.jit
def part_rows(granules, walk, work, PART: gl.constexpr, shape, layout: gl.constexpr):
    """(tensor rows, which of them exist) of a warpgroup's 64."""
    row = PART * 64 + gl.arange(0, 64, layout=layout)
    within = row % shape.GRANULE
    if shape.PERMUTED:
        within *= work.stride
    first = tensor_rows(granules * shape.GRANULE, walk.own_rows, work.stride, shape.PERMUTED)
    rows = first + within
    exist = row < work.stored
    return rows, exist & (rows < walk.own_time) if shape.BOUNDED else exist


@gluon.jit
def column_rows(walk, work, j, count, shape, layout: gl.constexpr):
    """Tensor rows of column tile j."""
    columns = walk.columns + work.start * (shape.TILE // shape.GRANULE)
    return gathered_rows(
        columns, j, count, walk.other_time, walk.other_rows, work.stride, shape.N, shape, layout
    )


@gluon.jit
def fetched_rows(walk, work, j, count, shape, layout: gl.constexpr, READERS: gl.constexpr):
    """Rows of column tile j, as copy_rows takes them."""
    if READERS == 1:
        return column_rows(walk, work, j, count, shape, layout)
    rows, _ = reader_rows(walk, work, j, count, shape, layout)
    return rows


@gluon.jit
def fetched_places(walk, work, j, count, shape, layout: gl.constexpr, READERS: gl.constexpr):
    """Where the statistics of column tile j's queries are."""
    if READERS == 1:
        return column_rows(walk, work, j, count, shape, layout)
    _, places = reader_rows(walk, work, j, count, shape, layout)
    return places


@gluon.jit
def mask_number(walk, work, j, count, shape):
    return gl.load(walk.mask + work.start + j * shape.N // shape.TILE, mask=j < count, other=0)


@gluon.jit
def mask_words(walk, number, j, shape):
    """Where the first words of mask `number` are that belong to column tile j, of every row of the first unit."""
    row = gl.arange(0, unit(shape.M), layout=VECTOR)
    return walk.masks + (number * shape.M + row) * (shape.TILE // 32) + j * shape.N % shape.TILE // 32


@gluon.jit
def await_x(ring, j, last, shape):
    """Waits for x of the column tile at place j; from `last` on there is none, and it does not."""
    mbarrier.wait(ring.x_full.index(j % shape.STAGES), j // shape.STAGES & 1, pred=j < last)


@gluon.jit
def await_y(ring, j, shape):
    mbarrier.wait(ring.y_full.index(j % shape.STAGES), j // shape.STAGES & 1)


@gluon.jit
def release(ring, stage):
    mbarrier.arrive(ring.empty.index(stage), count=1)


@gluon.jit
def scores(a, b, shape):
    """a b^T of a warpgroup's 64 rows, begun and not awaited."""
    zero = gl.zeros([64, shape.N], gl.float32, accumulator(shape.N))
    return warpgroup_mma(a, b.permute([1, 0]), zero, use_acc=False, is_async=True)


@gluon.jit
def part_words(ring, stage, PART: gl.constexpr, shape):
    """The mask words of a warpgroup's rows, a vector for every 32 columns."""
    return words_or(ring, stage, PART, shape, 0)


@gluon.jit
def words_or(ring, stage, PART: gl.constexpr, shape, more):
    """The same, with the bits of `more`: -1 where the tile has no mask, and its words are of another."""
    words = ()
    for word in gl.static_range(shape.N // 32):
        words += (words_of_part(ring, stage, word, PART, shape).load(row_of(shape.N)) | more,)
    return words


@gluon.jit
def words_of(ring, stage, WORD: gl.constexpr, UNIT: gl.constexpr, shape):
    """Where a stage has one mask word of each row of a unit."""
    units: gl.constexpr = shape.M // unit(shape.M)
    return ring.words.index((stage * (shape.N // 32) + WORD) * units + UNIT)


@gluon.jit
def words_of_part(ring, stage, WORD: gl.constexpr, PART: gl.constexpr, shape):
    """The same of a warpgroup's 64 rows."""
    first: gl.constexpr = PART * 64
    return words_of(ring, stage, WORD, first // unit(shape.M), shape).slice(first % unit(shape.M), 64, dim=0)


@gluon.jit
def sight(ring, stage, PART: gl.constexpr, shape):
    """Whether a warpgroup's 64 rows see a tile with a mask: NONE of its columns, all for EVERY row, or SOME.

    Each warp reads the words of all 64 rows: one instruction joins them, and no warp waits for another.
    """
    some, every = 0, -1
    for word in gl.static_range(shape.N // 32):
        words = words_of_part(ring, stage, word, PART, shape).load(WHOLE)
        some, every = words | some, words & every
    return gl.reduce_or((some != 0).to(gl.int32) | ((every != -1).to(gl.int32) << 1), 0)


@gluon.jit
def bits_of(words, shape):
    """([64, N] the mask word that bit c of a row is in, the same of that bit alone)"""
    column = gl.arange(0, shape.N, layout=gl.SliceLayout(0, accumulator(shape.N)))[None, :]
    word = gl.zeros([64, shape.N], gl.int32, accumulator(shape.N))
    for number in gl.static_range(len(words)):
        word = gl.where(column >= 32 * number, words[number][:, None], word)
    return word, gl.zeros([64, shape.N], gl.int32, accumulator(shape.N)) + (1 << (column % 32))


@gluon.constexpr_function
def selection(other):
    """PTX of `hidden`: $0 is $1 where one bit of both $2 and $3 is set, else `other`."""
    number = {"-inf": "0fFF800000", "0": "0f00000000"}[other]
    test = ".reg .pred p; .reg .b32 t; and.b32 t, $2, $3; setp.ne.b32 p, t, 0;"
    return f"{{ {test} selp.f32 $0, $1, {number}, p; }}"


@gluon.jit
def hidden(x, words, shape, OTHER: gl.constexpr):
    """x [64, N], and OTHER, "-inf" or "0", where bit c of the rows' mask words is 0.

    In PTX, so that a bit is tested next to its use. gl.where tests all of a tile's first, more than there are
    predicates, and moves them through registers: 108 instructions for 64 in a step of 32 numbers a thread.
    """
    word, bit = bits_of(words, shape)
    return gl.inline_asm_elementwise(
        selection(OTHER), "=f,f,r,r", [x, word, bit], dtype=gl.float32, is_pure=True, pack=1
    )
