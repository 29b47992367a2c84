"""What the kernels share: the work of a program, the ring of column tiles, who fills it, rows to and from registers."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import async_copy, mbarrier, warpgroup_mma

from ..primitives import locate, tensor_rows

FETCH_REGISTERS = gl.constexpr(24)
VECTOR = gl.constexpr(gl.BlockedLayout([1], [32], [4], [0]))
PLAIN = gl.constexpr(gl.SwizzledSharedLayout(1, 1, 1, order=[0]))


@gluon.constexpr_function
def computing_registers(launched):
    """What two warpgroups may have when three were launched with `launched` a thread."""
    return (3 * launched - 24) // 16 * 8


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


@gluon.aggregate
class Shape:
    """The constants of a kernel."""

    HEAD_DIM: gl.constexpr
    VALUE_DIM: gl.constexpr
    HEAD_PAD: gl.constexpr
    VALUE_PAD: gl.constexpr
    M: gl.constexpr
    N: gl.constexpr  # columns that are computed at a time
    TILE: gl.constexpr  # columns of the plan's tiles
    GRANULE: gl.constexpr
    PERMUTED: gl.constexpr
    WIDE: gl.constexpr
    STAGES: gl.constexpr


@gluon.aggregate
class Work:
    """One row tile: plan rows, and column tiles (of shape.N) 0 .. count, of which those before `full` have no mask."""

    rows: gl.tensor
    columns: gl.tensor
    mask: gl.tensor
    masks: gl.tensor
    tile: gl.tensor
    count: gl.tensor
    full: gl.tensor
    stored: gl.tensor
    heads: gl.tensor
    own_time: gl.tensor
    time: gl.tensor
    stride: gl.tensor


@gluon.jit
def find_work(
    head_index, order, head_tiles, rows, row_count, offset, full, columns, mask, masks, heads, own_time, time, tiles,
    shape, SHARED: gl.constexpr, HEAVIEST_FIRST: gl.constexpr,
):  # fmt: skip
    """(batch, head, work) of this program; an idle one has no rows and no columns."""
    batch, head, tile, exists = locate(head_index, head_tiles, heads, tiles, SHARED, HEAVIEST_FIRST)
    if not SHARED:
        tile = gl.where(exists, tile, 0)
    stride = gl.load(order + head) if shape.PERMUTED else gl.to_tensor(1)
    start = gl.load(offset + tile)
    count = gl.load(offset + tile + 1) - start
    unmasked = gl.load(full + tile)
    stored = gl.load(row_count + tile)
    if not SHARED:
        count = gl.where(exists, count, 0)
        unmasked = gl.where(exists, unmasked, 0)
        stored = gl.where(exists, stored, 0)
    columns += start * (shape.TILE // shape.GRANULE)
    count *= shape.TILE // shape.N
    unmasked *= shape.TILE // shape.N
    mask += start
    work = Work(rows, columns, mask, masks, tile, count, unmasked, stored, heads, own_time, time, stride)
    return batch, head, work


@gluon.aggregate
class Ring:
    """STAGES column tiles in flight: rows of x and of y (keys and values, or queries and their gradients), mask words
    (N / 32 vectors [M] a tile), barriers.
    """

    x: gl.shared_memory_descriptor
    y: gl.shared_memory_descriptor
    words: gl.shared_memory_descriptor
    x_full: gl.shared_memory_descriptor
    y_full: gl.shared_memory_descriptor
    empty: gl.shared_memory_descriptor


@gluon.jit
def make_ring(element: gl.constexpr, shape):
    x_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([shape.N, shape.HEAD_PAD], element)
    y_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([shape.N, shape.VALUE_PAD], element)
    ring = Ring(
        gl.allocate_shared_memory(element, [shape.STAGES, shape.N, shape.HEAD_PAD], x_layout),
        gl.allocate_shared_memory(element, [shape.STAGES, shape.N, shape.VALUE_PAD], y_layout),
        gl.allocate_shared_memory(gl.int32, [shape.STAGES * (shape.N // 32), shape.M], PLAIN),
        mbarrier.allocate_mbarrier(batch=shape.STAGES),
        mbarrier.allocate_mbarrier(batch=shape.STAGES),
        mbarrier.allocate_mbarrier(batch=shape.STAGES),
    )
    for stage in gl.static_range(shape.STAGES):
        # Every fetching thread arrives when its copies have; one thread of each computing warpgroup.
        mbarrier.init(ring.x_full.index(stage), count=128)
        mbarrier.init(ring.y_full.index(stage), count=128)
        mbarrier.init(ring.empty.index(stage), count=2)
    return ring


@gluon.jit
def make_own(element: gl.constexpr, shape, PAD: gl.constexpr):
    """Room for the row tile's own rows of one tensor."""
    layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([shape.M, PAD], element)
    return gl.allocate_shared_memory(element, [shape.M, PAD], layout)


@gluon.jit
def make_own_barrier():
    barrier = mbarrier.allocate_mbarrier()
    mbarrier.init(barrier, count=128)
    return barrier


@gluon.jit
def gathered_rows(granules, j, last, time, stride, COUNT: gl.constexpr, shape, layout: gl.constexpr):
    """Tensor rows of row or column tile j, int32 [COUNT]; the first ones from `last` on."""
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
    first = tensor_rows(granule * shape.GRANULE, time, stride, shape.PERMUTED)
    within = (place % shape.GRANULE + n) % shape.GRANULE
    if shape.PERMUTED:
        within *= stride
    return first + within


@gluon.jit
def addresses(pointer, rows, work, shape, DIM: gl.constexpr, PAD: gl.constexpr, layout: gl.constexpr):
    """(pointers [rows, PAD] into one head's rows, which of them are inside DIM)"""
    if shape.WIDE:
        rows = rows.to(gl.int64)
    column = gl.arange(0, PAD, layout=gl.SliceLayout(0, layout))[None, :]
    return pointer + (rows[:, None] * (work.heads * DIM) + column), column < DIM


@gluon.jit
def copy_rows(shared, pointer, rows, work, shape, DIM: gl.constexpr, PAD: gl.constexpr):
    """Asks for rows of one head, zeros past DIM."""
    where, inside = addresses(pointer, rows, work, shape, DIM, PAD, copied(PAD))
    if DIM == PAD:
        async_copy.async_load(shared, where)
    else:
        async_copy.async_load(shared, where, mask=inside)


@gluon.jit
def fetch_own(shared, pointer, work, shape, DIM: gl.constexpr, PAD: gl.constexpr):
    """The row tile's rows of one tensor."""
    rows = own_rows(work, work.tile, shape.M, shape, gl.SliceLayout(1, copied(PAD)))
    copy_rows(shared, pointer, rows, work, shape, DIM, PAD)


@gluon.jit
def own_rows(work, part, COUNT: gl.constexpr, shape, layout: gl.constexpr):
    """Tensor rows of the part-th COUNT rows of the plan."""
    return gathered_rows(work.rows, part, part + 1, work.own_time, work.stride, COUNT, shape, layout)


@gluon.jit
def column_rows(work, j, shape, layout: gl.constexpr):
    return gathered_rows(work.columns, j, work.count, work.time, work.stride, shape.N, shape, layout)


@gluon.jit
def mask_words(work, number, j, shape):
    """Where the first mask words of column tile j are, of every row."""
    row = gl.arange(0, shape.M, layout=VECTOR)
    return work.masks + (number * shape.M + row) * (shape.TILE // 32) + j * shape.N % shape.TILE // 32


@gluon.jit
def fetch_tiles(x, y, statistics, work, ring, shape):
    """Column tiles into the ring, and into rings of their own what `statistics` names: pairs (ring, pointer)."""
    x_layout: gl.constexpr = gl.SliceLayout(1, copied(shape.HEAD_PAD))
    y_layout: gl.constexpr = gl.SliceLayout(1, copied(shape.VALUE_PAD))
    rows = column_rows(work, 0, shape, x_layout)
    number = gl.load(work.mask, mask=work.count > 0, other=0)
    for j in range(work.count):
        stage = j % shape.STAGES
        x_rows = rows
        rows = column_rows(work, j + 1, shape, x_layout)  # a tile ahead: no load waits for the one before it
        words = mask_words(work, number, j, shape)
        number = gl.load(work.mask + (j + 1) * shape.N // shape.TILE, mask=j + 1 < work.count, other=0)
        if len(statistics) > 0:
            few = column_rows(work, j, shape, VECTOR)
        mbarrier.wait(ring.empty.index(stage), (j // shape.STAGES & 1) ^ 1)
        copy_rows(ring.x.index(stage), x, x_rows, work, shape, shape.HEAD_DIM, shape.HEAD_PAD)
        if j >= work.full:
            for word in gl.static_range(shape.N // 32):
                async_copy.async_load(ring.words.index(stage * (shape.N // 32) + word), words + word)
        for pair in gl.static_range(len(statistics)):
            async_copy.async_load(statistics[pair][0].index(stage), statistics[pair][1] + few)
        async_copy.mbarrier_arrive(ring.x_full.index(stage), increment_count=False)
        y_rows = gl.convert_layout(x_rows, y_layout)
        copy_rows(ring.y.index(stage), y, y_rows, work, shape, shape.VALUE_DIM, shape.VALUE_PAD)
        async_copy.mbarrier_arrive(ring.y_full.index(stage), increment_count=False)


@gluon.jit
def await_x(ring, j, count, shape):
    """Until column tile j of x is there; beyond the last, at once."""
    mbarrier.wait(ring.x_full.index(j % shape.STAGES), j // shape.STAGES & 1, pred=j < count)


@gluon.jit
def await_y(ring, j, shape):
    mbarrier.wait(ring.y_full.index(j % shape.STAGES), j // shape.STAGES & 1)


@gluon.jit
def scores(a, b, shape):
    """a b^T, in flight."""
    zero = gl.zeros([64, shape.N], gl.float32, accumulator(shape.N))
    return warpgroup_mma(a, b.permute([1, 0]), zero, use_acc=False, is_async=True)


@gluon.jit
def visible(ring, stage, PART: gl.constexpr, unmasked, shape):
    """bool [64, N]: bit c of the rows' mask words."""
    layout: gl.constexpr = accumulator(shape.N)
    column = gl.arange(0, shape.N, layout=gl.SliceLayout(0, layout))[None, :]
    bits = column * 0
    for word in gl.static_range(shape.N // 32):
        words = ring.words.index(stage * (shape.N // 32) + word).slice(PART * 64, 64, dim=0)
        bits = gl.where(column >= 32 * word, words.load(row_of(shape.N))[:, None], bits)
    return ((bits >> (column % 32)) & 1 != 0) | unmasked


@gluon.jit
def part_rows(work, PART: gl.constexpr, shape, layout: gl.constexpr):
    """(tensor rows, which of them exist) of a warpgroup's 64."""
    exists = PART * 64 + gl.arange(0, 64, layout=layout) < work.stored
    return own_rows(work, work.tile * (shape.M // 64) + PART, 64, shape, layout), exists


@gluon.jit
def store_rows(pointer, result, work, PART: gl.constexpr, shape, DIM: gl.constexpr, PAD: gl.constexpr):
    rows, stored = part_rows(work, PART, shape, row_of(PAD))
    where, inside = addresses(pointer, rows, work, shape, DIM, PAD, accumulator(PAD))
    gl.store(where, result.to(pointer.dtype.element_ty), mask=stored[:, None] & inside)
