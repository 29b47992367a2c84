"""What the kernels share: where a program works, which rows it gathers, who sees whom.

A plan row is a row in the plan's order, a tensor row one in memory. Tensors are [batch, time, heads * dim], so that a
head's row is `dim` numbers at a stride of heads * dim. Letters and arguments: see the package's docstring.
"""

import triton
import triton.language as tl

from .arguments import ColumnTiles, Extent

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def locate(plan, sizes, flags):
    """This program's (batch, head, part of a row tile, exists), parts counted through all row tiles, PARTS each; heads
    with fewer row tiles than `tiles` have idle programs.

    Programs start in the order of their numbers. Heads vary fastest, since the heads of one row lie side by side in
    memory and share its lines. With HEAVIEST_FIRST batch rows come next, so that the heaviest row tiles of all of them
    (first in the plan) start before any light one; else a batch row is finished before the next. Measured in
    benchmarks/LOG.md, section 3.
    """
    program = tl.program_id(0)
    head = program % sizes.heads
    parts = sizes.tiles * flags.PARTS
    if flags.HEAVIEST_FIRST:
        batches = tl.num_programs(0) // (sizes.heads * parts)
        batch = program // sizes.heads % batches
        part = program // (sizes.heads * batches)
    else:
        batch = program // (sizes.heads * parts)
        part = program // sizes.heads % parts
    batch = batch.to(tl.int64)
    if flags.SHARED:  # saves two loads that everything after them would wait for
        return batch, head, part, True
    number = tl.load(plan.head_index + head)
    part += tl.load(plan.head_tiles + number) * flags.PARTS
    return batch, head, part, part < tl.load(plan.head_tiles + number + 1) * flags.PARTS


@triton.jit
def tensor_rows(rows, time, stride, PERMUTED: tl.constexpr):
    """Plan row r is tensor row (r % (time / stride)) * stride + r // (time / stride)."""
    if PERMUTED:
        run = time // stride
        return rows % run * stride + rows // run
    return rows


@triton.jit
def query_extent(sizes, flags):
    return Extent(sizes.query_time, sizes.query_rows if flags.QK.BOUNDED else sizes.query_time)


@triton.jit
def key_extent(sizes, flags):
    return Extent(sizes.key_time, sizes.key_rows if flags.QK.BOUNDED else sizes.key_time)


@triton.jit
def gathered_rows(granules, j, last, extent, stride, COUNT: tl.constexpr, flags):
    """Tensor rows of row or column tile j, int32 [COUNT]: COUNT / GRANULE runs of GRANULE plan rows; row 0 from `last`
    on. BOUNDED: -1 where a tensor has no such row.
    """
    n = tl.arange(0, COUNT)
    # Up to four granule numbers are loaded one by one: a vector of them changes layouts through shared memory in every
    # iteration (benchmarks/LOG.md, section 7).
    if COUNT // flags.GRANULE <= 4:
        granule = n * 0 + tl.load(granules + j * (COUNT // flags.GRANULE), mask=j < last, other=0)
        for run in tl.static_range(1, COUNT // flags.GRANULE):
            number = tl.load(granules + j * (COUNT // flags.GRANULE) + run, mask=j < last, other=0)
            granule = tl.where(n >= run * flags.GRANULE, number, granule)
    else:
        granule = tl.load(
            granules + j * (COUNT // flags.GRANULE) + n // flags.GRANULE, mask=n * 0 + j < last, other=0
        )
    first = tensor_rows(granule * flags.GRANULE, extent.rows, stride, flags.PERMUTED)
    # A run never crosses from one residue class into the next: the plan is checked for that.
    rows = first + n % flags.GRANULE * stride if flags.PERMUTED else first + n % flags.GRANULE
    return tl.where(rows < extent.time, rows, -1) if flags.QK.BOUNDED else rows


@triton.jit
def reader_rows(granules, j, last, extent, stride, heads, flags):
    """Queries of a key head's column tile j: (their rows in [time, heads * GROUP], their places in [GROUP, time]);
    BOUNDED: as in gathered_rows.
    """
    n = tl.arange(0, flags.N)
    step = stride if flags.PERMUTED else 1
    own = extent.rows // flags.GRANULE
    if flags.N // flags.GRANULE <= 4:  # as in gathered_rows; numbers are divided one by one, not in a vector
        rows, places = n * 0, n * 0
        for run in tl.static_range(flags.N // flags.GRANULE):
            number = tl.load(granules + j * (flags.N // flags.GRANULE) + run, mask=j < last, other=0)
            reader = number // own
            first = tensor_rows((number - reader * own) * flags.GRANULE, extent.rows, stride, flags.PERMUTED)
            rows = tl.where(n >= run * flags.GRANULE, first * (heads * flags.GROUP) + reader, rows)
            places = tl.where(n >= run * flags.GRANULE, first + reader * extent.time, places)
    else:
        number = tl.load(
            granules + j * (flags.N // flags.GRANULE) + n // flags.GRANULE, mask=n * 0 + j < last, other=0
        )
        reader = number // own
        first = tensor_rows((number - reader * own) * flags.GRANULE, extent.rows, stride, flags.PERMUTED)
        rows, places = first * (heads * flags.GROUP) + reader, first + reader * extent.time
    within = n % flags.GRANULE * step
    rows, places = rows + within * (heads * flags.GROUP), places + within
    if flags.QK.BOUNDED:
        exist = rows < extent.time * (heads * flags.GROUP)
        rows, places = tl.where(exist, rows, -1), tl.where(exist, places, -1)
    return rows, places


@triton.jit
def column_rows(tiles, j, flags):
    """(rows of column tile j, which of them are no padding: none from the last tile on).

    A short column tile repeats its first granule, and only closed kernels have to know: they store to these rows.
    """
    rows = gathered_rows(tiles.columns, j, tiles.count, tiles.extent, tiles.stride, flags.N, flags)
    n = tl.arange(0, flags.N)
    real = n * 0 + j < tiles.count
    if flags.QK.BOUNDED:
        real = real & (rows >= 0)
    if flags.N > flags.GRANULE:
        first = tl.load(tiles.columns + j * (flags.N // flags.GRANULE), mask=j < tiles.count, other=0)
        run = (
            tensor_rows(first * flags.GRANULE, tiles.extent.rows, tiles.stride, flags.PERMUTED)
            + n % flags.GRANULE * tiles.stride
        )
        real = real & ((n < flags.GRANULE) | (rows != run))
    return rows, real


@triton.jit
def row_tile(plan, sizes, batch, head, part, own_extent, extent, flags):
    """(the part's ColumnTiles, its own rows, which of those are stored)"""
    tile, first_row = part // flags.PARTS, part % flags.PARTS * flags.M
    stride = tl.load(plan.residues + head) if flags.PERMUTED else 1
    if flags.SEGMENTS:
        span = cut_span(plan, sizes, batch, head, tile, flags)
        first, count, unmasked = tl.load(span), tl.load(span + 1), tl.load(span + 2)
    else:
        first = tile if flags.SINGLE else tl.load(plan.offset + tile)
        count = 1 if flags.SINGLE else tl.load(plan.offset + tile + 1) - first
        unmasked = tl.load(plan.full + tile)
    stored = first_row + tl.arange(0, flags.M) < tl.load(plan.row_count + tile)
    own = gathered_rows(plan.rows, part, part + 1, own_extent, stride, flags.M, flags)
    if flags.QK.BOUNDED:
        stored = stored & (own >= 0)
    columns = plan.columns + first * (flags.N // flags.GRANULE)
    masks = plan.masks + first_row * (max(flags.N, 32) // 32)
    return ColumnTiles(columns, plan.mask + first, masks, unmasked, count, extent, stride), own, stored


@triton.jit
def cut_span(plan, sizes, batch, head, tile, flags):
    """Where cut.py has left the row tile's three numbers, in the place of the plan's offsets."""
    batches = tl.num_programs(0) // (sizes.heads * sizes.tiles * flags.PARTS)
    span = tile * batches + batch.to(tl.int32)
    return plan.offset + 3 * (span * sizes.heads + head if flags.ORDERS else span)


@triton.jit
def mask_words(masks, number, wanted, flags):
    """(columns 0 to 63, columns 64 to 127) of mask `number` as int64 [M] each; all ones unless `wanted`.

    masks: where the part's rows start in the first mask.
    """
    row = tl.arange(0, flags.M)
    # The interpreter takes no scalar condition for a vector of loads, so `wanted` becomes a vector.
    wanted = row * 0 + wanted != 0
    if flags.N <= 32:
        low = tl.load(masks + number * (flags.M * flags.PARTS) + row, mask=wanted, other=-1).to(tl.int64)
        return low, low
    words = (masks + number * (flags.M * flags.PARTS * flags.N // 32)).to(tl.pointer_type(tl.int64)) + row * (
        flags.N // 64
    )
    low = tl.load(words, mask=wanted, other=-1)
    return low, tl.load(words + 1, mask=wanted, other=-1) if flags.N > 64 else low


@triton.jit
def visible(low, high, flags):
    """bool [M, N]: bit c of row r's mask words."""
    return (words_of(low, high, flags) >> (tl.arange(0, flags.N)[None, :] % 32)) & 1 != 0


@triton.jit
def hiding(low, high, flags):
    """int32 [M, N], as `shown` takes it: -1 where bit c of row r's mask words is set, else 0."""
    return (words_of(low, high, flags) << (31 - tl.arange(0, flags.N)[None, :] % 32)) >> 31


@triton.jit
def shown(x, seen):
    """float32 x, 0 where `seen` is. Not tl.where: two selects by one bool, in front of a rounding, are carried out on
    packed pairs, with the bools in registers, which takes 12% more instructions a tile (benchmarks/LOG.md, section 36).
    """
    return (x.to(tl.int32, bitcast=True) & seen).to(tl.float32, bitcast=True)


@triton.jit
def words_of(low, high, flags):
    """int32 [M, N]: the mask word that column c of row r has its bit in."""
    column = tl.arange(0, flags.N)[None, :]
    bits = tl.broadcast_to(low.to(tl.int32)[:, None], (flags.M, flags.N))
    if flags.N > 32:
        bits = tl.where(column >= 32, (low >> 32).to(tl.int32)[:, None], bits)
    if flags.N > 64:
        bits = tl.where(column >= 64, high.to(tl.int32)[:, None], bits)
        bits = tl.where(column >= 96, (high >> 32).to(tl.int32)[:, None], bits)
    return bits


@triton.jit
def addresses(pointer, rows, heads, layout):
    """Pointers [rows, PAD] into one head's rows.

    The offsets are summed before the pointer is added: so a change of layout moves 32-bit numbers, and one tensor of
    them, where row pointers plus columns would move 64-bit ones, twice (benchmarks/LOG.md, section 7).
    """
    if layout.WIDE:
        rows = rows.to(tl.int64)
    return pointer + (rows[:, None] * (heads * layout.DIM) + tl.arange(0, layout.PAD)[None, :])


@triton.jit
def inside(exists, layout):
    """bool [rows, PAD]: which numbers of a tile are a tensor's."""
    return exists[:, None] & (tl.arange(0, layout.PAD)[None, :] < layout.DIM)


@triton.jit
def gather(pointer, rows, heads, layout):
    """[N, PAD] of one head, zeros past DIM. Every row exists but, where BOUNDED, row -1, which is zeros."""
    if layout.BOUNDED:
        return load_rows(pointer, rows, rows >= 0, heads, layout)
    where = addresses(pointer, rows, heads, layout)
    if layout.DIM == layout.PAD:
        return tl.load(where)
    return tl.load(where, mask=tl.arange(0, layout.PAD)[None, :] < layout.DIM, other=0.0)


@triton.jit
def load_places(statistics, places, flags):
    """Of queries; BOUNDED: 0 at place -1."""
    if flags.QK.BOUNDED:
        return tl.load(statistics + places, mask=places >= 0, other=0.0)
    return tl.load(statistics + places)


@triton.jit
def load_rows(pointer, rows, exists, heads, layout):
    """[M, PAD] of one head, zeros past DIM and where a row does not exist."""
    wanted = inside(exists, layout)
    return tl.load(addresses(pointer, rows, heads, layout), mask=wanted, other=0.0)


@triton.jit
def ask_rows(pointer, rows, exists, heads, layout):
    """load_rows without its zeros, which `held` puts in once everything is asked for.

    Where a load's result goes into a product as it is, Triton copies it to shared memory right behind the load, and the
    loads after it are not asked for before it has come: a round trip each. The select in `held` prevents that
    (benchmarks/LOG.md, section 8).
    """
    wanted = inside(exists, layout)
    return tl.load(addresses(pointer, rows, heads, layout), mask=wanted)


@triton.jit
def held(tile, exists, layout):
    """What ask_rows asked for, zeros past DIM and where a row does not exist."""
    return tl.where(inside(exists, layout), tile, 0.0)


@triton.jit
def join(out, lse, own, stored, tile, log_sum, heads, layout):
    """(tile, log_sum), of this pass's keys alone, over those of earlier passes too, which stand in out and lse.

    sum of w_p out_p, w_p = exp(lse_p - lse), lse = log sum of exp(lse_p); a pass that shows a row no key has weight 0.
    """
    before = tl.load(lse + own, mask=stored, other=-float("inf"))
    top = tl.maximum(before, log_sum)
    top = tl.where(top == -float("inf"), 0.0, top)  # no pass has shown a key: -inf - -inf would be NaN
    old, new = tl.exp2((before - top) * LOG2_E), tl.exp2((log_sum - top) * LOG2_E)
    total = old + new
    log_sum = tl.where(total == 0.0, -float("inf"), top + tl.log2(total) / LOG2_E)
    total = tl.where(total == 0.0, 1.0, total)
    rows = load_rows(out, own, stored, heads, layout).to(tl.float32)
    tile = tile * (new / total)[:, None] + rows * (old / total)[:, None]
    tl.debug_barrier()  # several threads read one row's lse; without this one of them may write it before all have
    return tile, log_sum


@triton.jit
def put_rows(pointer, rows, exists, tile, heads, layout, JOINED: tl.constexpr):
    """store_rows; JOINED: of the sum of the tile and what is there."""
    if JOINED:
        tile += load_rows(pointer, rows, exists, heads, layout).to(tl.float32)
    store_rows(pointer, rows, exists, tile, heads, layout)


@triton.jit
def store_rows(pointer, rows, exists, tile, heads, layout):
    """Writes [M, PAD] to one head's rows, rounded to the tensor's dtype."""
    wanted = inside(exists, layout)
    where = addresses(pointer, rows, heads, layout)
    tl.store(where, tile.to(pointer.dtype.element_ty), mask=wanted)
