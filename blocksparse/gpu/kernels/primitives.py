"""What the kernels share: where a program works, which rows it gathers, who sees whom.

Letters: M rows of a row tile, N columns of a column tile; a plan row is a row in the plan's order, a tensor row one in
memory. Tensors are [batch, time, heads * dim], so that a head's row is `dim` numbers at a stride of heads * dim.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def locate(head_index, head_tiles, heads, tiles, SHARED: tl.constexpr, HEAVIEST_FIRST: tl.constexpr):
    """This program's (batch, head, row tile, exists): heads with fewer row tiles than `tiles` have idle programs.

    The heads of the same rows run side by side, since they share memory pages. Batch rows follow one another, or
    alternate too when the heaviest row tiles of all of them, long before the light ones, are to start first.
    """
    program = tl.program_id(0)
    head = program % heads
    if HEAVIEST_FIRST:
        batches = tl.num_programs(0) // (heads * tiles)
        batch = program // heads % batches
        tile = program // (heads * batches)
    else:
        batch = program // (heads * tiles)
        tile = program // heads % tiles
    batch = batch.to(tl.int64)
    if SHARED:  # one plan for all heads: two dependent loads fewer before the first useful one
        return batch, head, tile, True
    plan = tl.load(head_index + head)
    tile += tl.load(head_tiles + plan)
    return batch, head, tile, tile < tl.load(head_tiles + plan + 1)


@triton.jit
def tensor_rows(rows, time, stride, PERMUTED: tl.constexpr):
    """Plan row r is tensor row (r % (time / stride)) * stride + r // (time / stride)."""
    if PERMUTED:
        run = time // stride
        return rows % run * stride + rows // run
    return rows


@triton.jit
def gathered_rows(
    granules, j, last, time, stride, N: tl.constexpr, GRANULE: tl.constexpr, PERMUTED: tl.constexpr
):
    """Tensor rows of row or column tile j, int32 [N]: N / GRANULE runs of GRANULE plan rows; row 0 from `last` on."""
    n = tl.arange(0, N)
    if (
        N // GRANULE <= 4
    ):  # scalars: a vector of numbers would change layouts through shared memory in every iteration
        granule = n * 0 + tl.load(granules + j * (N // GRANULE), mask=j < last, other=0)
        for run in tl.static_range(1, N // GRANULE):
            number = tl.load(granules + j * (N // GRANULE) + run, mask=j < last, other=0)
            granule = tl.where(n >= run * GRANULE, number, granule)
    else:
        granule = tl.load(granules + j * (N // GRANULE) + n // GRANULE, mask=n * 0 + j < last, other=0)
    first = tensor_rows(granule * GRANULE, time, stride, PERMUTED)
    if PERMUTED:  # a run never crosses from one residue class into the next
        return first + n % GRANULE * stride
    return first + n % GRANULE


@triton.jit
def column_rows(
    granules, j, last, time, stride, N: tl.constexpr, GRANULE: tl.constexpr, PERMUTED: tl.constexpr
):
    """(rows of column tile j, which of them are no padding: none from `last` on). Padding repeats the first run."""
    rows = gathered_rows(granules, j, last, time, stride, N, GRANULE, PERMUTED)
    n = tl.arange(0, N)
    real = n * 0 + j < last
    if N > GRANULE:
        first = tl.load(granules + j * (N // GRANULE), mask=j < last, other=0)
        run = tensor_rows(first * GRANULE, time, stride, PERMUTED) + n % GRANULE * stride
        real = real & ((n < GRANULE) | (rows != run))
    return rows, real


@triton.jit
def row_tile(
    order, head, rows, row_count, offset, full, columns, mask, tile, time, M: tl.constexpr, N: tl.constexpr,
    GRANULE: tl.constexpr, PERMUTED: tl.constexpr, SINGLE: tl.constexpr,
):  # fmt: skip
    """(stride, column tiles, how many of them need no mask, own rows, which are stored, columns, mask) of `tile`."""
    stride = tl.load(order + head) if PERMUTED else 1
    first = tile if SINGLE else tl.load(offset + tile)
    count = 1 if SINGLE else tl.load(offset + tile + 1) - first
    unmasked = tl.load(full + tile)
    stored = tl.arange(0, M) < tl.load(row_count + tile)
    own = gathered_rows(rows, tile, tile + 1, time, stride, M, GRANULE, PERMUTED)
    return stride, count, unmasked, own, stored, columns + first * (N // GRANULE), mask + first


@triton.jit
def mask_words(masks, number, wanted, M: tl.constexpr, N: tl.constexpr):
    """(columns 0 to 63, columns 64 to 127) of mask `number` as int64 [M] each; all ones unless `wanted`."""
    row = tl.arange(0, M)
    # A whole vector: the interpreter takes no scalar condition for a vector of loads.
    wanted = row * 0 + wanted != 0
    if N <= 32:
        low = tl.load(masks + number * M + row, mask=wanted, other=-1).to(tl.int64)
        return low, low
    words = (masks + number * (M * N // 32)).to(tl.pointer_type(tl.int64)) + row * (N // 64)
    low = tl.load(words, mask=wanted, other=-1)
    return low, tl.load(words + 1, mask=wanted, other=-1) if N > 64 else low


@triton.jit
def visible(low, high, M: tl.constexpr, N: tl.constexpr):
    """bool [M, N]: bit c of row r's mask words."""
    column = tl.arange(0, N)[None, :]
    bits = tl.broadcast_to(low.to(tl.int32)[:, None], (M, N))
    if N > 32:
        bits = tl.where(column >= 32, (low >> 32).to(tl.int32)[:, None], bits)
    if N > 64:
        bits = tl.where(column >= 64, high.to(tl.int32)[:, None], bits)
        bits = tl.where(column >= 96, (high >> 32).to(tl.int32)[:, None], bits)
    return (bits >> (column % 32)) & 1 != 0


@triton.jit
def addresses(pointer, rows, heads, DIM: tl.constexpr, PAD: tl.constexpr, WIDE: tl.constexpr):
    """Pointers [rows, PAD] into one head's rows; WIDE where a tensor passes 2^31 elements.

    Offsets are summed before the pointer: where layouts change, they then change half as wide numbers, and once.
    """
    if WIDE:
        rows = rows.to(tl.int64)
    return pointer + (rows[:, None] * (heads * DIM) + tl.arange(0, PAD)[None, :])


@triton.jit
def gather(pointer, rows, heads, DIM: tl.constexpr, PAD: tl.constexpr, WIDE: tl.constexpr):
    """[N, PAD] of one head, zeros past DIM. Every row exists."""
    where = addresses(pointer, rows, heads, DIM, PAD, WIDE)
    if DIM == PAD:
        return tl.load(where)
    return tl.load(where, mask=tl.arange(0, PAD)[None, :] < DIM, other=0.0)


@triton.jit
def load_rows(pointer, rows, exists, heads, DIM: tl.constexpr, PAD: tl.constexpr, WIDE: tl.constexpr):
    """[M, PAD] of one head, zeros past DIM and where a row does not exist."""
    inside = exists[:, None] & (tl.arange(0, PAD)[None, :] < DIM)
    return tl.load(addresses(pointer, rows, heads, DIM, PAD, WIDE), mask=inside, other=0.0)


@triton.jit
def ask_rows(pointer, rows, exists, heads, DIM: tl.constexpr, PAD: tl.constexpr, WIDE: tl.constexpr):
    """load_rows to be finished by `held`, once everything is asked for.

    A tile that is loaded and multiplied goes to shared memory at once otherwise, and whatever follows waits for it.
    """
    inside = exists[:, None] & (tl.arange(0, PAD)[None, :] < DIM)
    return tl.load(addresses(pointer, rows, heads, DIM, PAD, WIDE), mask=inside)


@triton.jit
def held(tile, exists, DIM: tl.constexpr, PAD: tl.constexpr):
    """What ask_rows asked for, zeros past DIM and where a row does not exist."""
    return tl.where(exists[:, None] & (tl.arange(0, PAD)[None, :] < DIM), tile, 0.0)


@triton.jit
def store_rows(pointer, rows, exists, heads, tile, DIM: tl.constexpr, PAD: tl.constexpr, WIDE: tl.constexpr):
    """Writes [M, PAD] to one head's rows, rounded to the tensor's dtype."""
    inside = exists[:, None] & (tl.arange(0, PAD)[None, :] < DIM)
    where = addresses(pointer, rows, heads, DIM, PAD, WIDE)
    tl.store(where, tile.to(pointer.dtype.element_ty), mask=inside)
