"""Which row tiles a program takes: one, or, where rows are short, one after the other, so that its loads never stop.

A program with three column tiles would mostly wait for the chain of loads that leads to its first keys. In a walk the
fetching warpgroup is already at the next row tile meanwhile (benchmarks/LOG.md, section 13).
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


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
    TURNS: gl.constexpr
    OVERLAP: gl.constexpr  # see overlaps
    JOINED: gl.constexpr
    GROUP: gl.constexpr
    ORDERS: gl.constexpr
    BOUNDED: gl.constexpr


@gluon.constexpr_function
def overlaps(turns, registers, rows):
    """Whether a computing warpgroup runs one tile's products under the next one's exponentials.

    It then holds two tiles' numbers at once, for which it needs many registers. With fewer, programs share a
    multiprocessor and the products of one run under the exponentials of another; in a walk those of one warpgroup run
    under the other's, and doing both is slower (benchmarks/LOG.md, sections 9 and 13). So do those of three warpgroups
    (section 28).
    """
    return turns == 1 and registers >= 128 and rows <= 128


@gluon.jit
def make_shape(flags):
    return Shape(
        flags.QK.DIM, flags.VO.DIM, flags.QK.PAD, flags.VO.PAD, flags.M, flags.COLUMNS, flags.N, flags.GRANULE,
        flags.PERMUTED, flags.QK.WIDE, flags.STAGES, flags.TURNS, overlaps(flags.TURNS, flags.REGISTERS, flags.M),
        flags.JOINED, flags.GROUP, flags.ORDERS, flags.QK.BOUNDED,
    )  # fmt: skip


@gluon.constexpr_function
def fetch_registers(rows, registers, scarce):
    """Registers a thread that the fetching warpgroup keeps of the `registers` that all were launched with.

    rows: of a row tile. scarce: the computing ones would spill; addresses are then computed in fewer.
    """
    return 32 if registers < 128 or rows > 128 else 24 if scarce else 56


@gluon.constexpr_function
def computing_registers(rows, registers, scarce):
    """What the computing ones get then: equal shares of the rest, in steps of 8, which is what the hardware gives."""
    computing = rows // 64
    return ((computing + 1) * registers - fetch_registers(rows, registers, scarce)) // (8 * computing) * 8


@gluon.constexpr_function
def worker_warps(rows):
    """Warps of all warpgroups but the first, which computes and is there from the start."""
    return [4] * (rows // 64)


@gluon.constexpr_function
def worker_registers(rows, registers, scarce=False):
    """Registers a thread of the same."""
    each = computing_registers(rows, registers, scarce)
    return [each] * (rows // 64 - 1) + [fetch_registers(rows, registers, scarce)]


@gluon.aggregate
class Walk:
    """The plan of one side, and the row tiles of all batch rows and heads: `count`, of which a head has `tiles`.

    own: of the tensors whose rows the row tiles are; other: of those that are gathered from.
    """

    head_index: gl.tensor
    residues: gl.tensor
    head_tiles: gl.tensor
    rows: gl.tensor
    row_count: gl.tensor
    offset: gl.tensor
    full: gl.tensor
    columns: gl.tensor
    mask: gl.tensor
    masks: gl.tensor
    heads: gl.tensor
    own_time: gl.tensor
    own_rows: gl.tensor
    other_time: gl.tensor
    other_rows: gl.tensor
    tiles: gl.tensor
    count: gl.tensor
    SHARED: gl.constexpr
    HEAVIEST_FIRST: gl.constexpr
    HEADS_IN_TURN: gl.constexpr
    SEGMENTS: gl.constexpr


@gluon.jit
def make_walk(plan, sizes, count, own, other, flags):
    """own, other: primitives.Extent."""
    return Walk(
        plan.head_index, plan.residues, plan.head_tiles, plan.rows, plan.row_count, plan.offset, plan.full,
        plan.columns, plan.mask, plan.masks, sizes.heads, own.time, own.rows, other.time, other.rows,
        sizes.tiles, count, flags.SHARED, flags.HEAVIEST_FIRST, flags.HEADS_IN_TURN, flags.SEGMENTS,
    )  # fmt: skip


@gluon.aggregate
class Work:
    """One row tile: plan rows, and column tiles start .. end of the plan, of which the first `full` have no mask."""

    batch: gl.tensor
    head: gl.tensor
    tile: gl.tensor
    start: gl.tensor
    end: gl.tensor
    full: gl.tensor
    stored: gl.tensor
    stride: gl.tensor

    @gluon.jit
    def column_tiles(self, shape):
        """(all, those without a mask), counted in tiles of shape.N columns.

        Not computed in find_work: arithmetic on what was just loaded waits for it, and next_work asks for the next row
        tile's numbers long before they are needed.
        """
        parts: gl.constexpr = shape.TILE // shape.N
        return (self.end - self.start) * parts, self.full * parts


@gluon.jit
def find_work(walk, number, shape):
    """Row tile `number`, or the last where there are fewer. One that its head lacks has no rows and no columns.

    In primitives.locate's order; with HEADS_IN_TURN a head is finished before the next, so that what the cache holds
    are one head's keys and values. Where rows see few of many columns, tiles that are read again lie far apart
    otherwise (benchmarks/LOG.md, section 36).
    """
    number = gl.minimum(number, walk.count - 1)
    batches = walk.count // (walk.heads * walk.tiles)
    if walk.HEADS_IN_TURN:
        head = number // walk.tiles % walk.heads
        batch = number // (walk.heads * walk.tiles)
        tile = number % walk.tiles
    elif walk.HEAVIEST_FIRST:
        head = number % walk.heads
        batch = number // walk.heads % batches
        tile = number // (walk.heads * batches)
    else:
        head = number % walk.heads
        batch = number // (walk.heads * walk.tiles)
        tile = number // walk.heads % walk.tiles
    stride = gl.load(walk.residues + head) if shape.PERMUTED else gl.to_tensor(1)
    if not walk.SHARED:
        plan = gl.load(walk.head_index + head)
        tile += gl.load(walk.head_tiles + plan)
        exists = tile < gl.load(walk.head_tiles + plan + 1)
        tile = gl.where(exists, tile, 0)
    if walk.SEGMENTS:  # primitives.cut_span
        span = tile * batches + batch
        if shape.ORDERS:
            span = span * walk.heads + head
        start = gl.load(walk.offset + 3 * span)
        end = start + gl.load(walk.offset + 3 * span + 1)
        full = gl.load(walk.offset + 3 * span + 2)
    else:
        start = gl.load(walk.offset + tile)
        end = gl.load(walk.offset + tile + 1)
        full = gl.load(walk.full + tile)
    stored = gl.load(walk.row_count + tile)
    if not walk.SHARED:
        end = gl.where(exists, end, start)
        full = gl.where(exists, full, 0)
        stored = gl.where(exists, stored, 0)
    return Work(batch.to(gl.int64), head, tile, start, end, full, stored, stride)


@gluon.jit
def next_work(walk, number, work, shape):
    """The program's row tile after `number`, asked for while that is worked on."""
    return find_work(walk, number + gl.num_programs(0), shape) if shape.TURNS > 1 else work


@gluon.jit
def kept(work, wanted):
    """The row tile, with rows to be read and stored only where `wanted`."""
    stored = gl.where(wanted, work.stored, 0)
    return Work(work.batch, work.head, work.tile, work.start, work.end, work.full, stored, work.stride)
