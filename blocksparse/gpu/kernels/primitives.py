"""What the kernels share: where a program works, which rows it gathers, who sees whom.

Letters: M rows of a row tile, N columns of a column tile; a plan row is a row in the plan's order, a tensor row one in
memory. Tensors are [batch, time, heads * dim], so that a head's row is `dim` numbers at a stride of heads * dim.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def locate(head_index, head_tiles, heads, tiles, SHARED: tl.constexpr, HEADS_FIRST: tl.constexpr):
    """This program's (batch, head, row tile, does it exist): heads with fewer row tiles than `tiles` have idle programs.

    HEADS_FIRST puts the heads of the same rows side by side (they share memory pages); otherwise a head's row tiles
    follow one another, heaviest first (they share its keys and values in the cache).
    """
    program = tl.program_id(0)
    if HEADS_FIRST:
        head = program % heads
        tile = program // heads % tiles
    else:
        tile = program % tiles
        head = program // tiles % heads
    batch = (program // (heads * tiles)).to(tl.int64)
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
def gathered_rows(columns, j, time, stride, N: tl.constexpr, GRANULE: tl.constexpr, PERMUTED: tl.constexpr):
    """Tensor rows of column tile j, int32 [N]: N / GRANULE runs of GRANULE plan rows."""
    n = tl.arange(0, N)
    if GRANULE == N:
        granule = tl.load(columns + j)
    else:
        granule = tl.load(columns + j * (N // GRANULE) + n // GRANULE)
    first = tensor_rows(granule * GRANULE, time, stride, PERMUTED)
    if PERMUTED:  # a run never crosses from one residue class into the next
        return first + n % GRANULE * stride
    return first + n % GRANULE


@triton.jit
def visible(mask, masks, j, full, M: tl.constexpr, N: tl.constexpr):
    """bool [M, N]: bit c % 32 of word c // 32 of the tile's mask; column tiles before `full` are visible throughout."""
    WORDS: tl.constexpr = (N + 31) // 32
    row = tl.arange(0, M)
    words = masks + tl.load(mask + j) * (M * WORDS) + row * WORDS
    masked = row * 0 + j >= full  # a whole vector: the interpreter takes no scalar condition for a vector of loads
    column = tl.arange(0, N)[None, :]
    bits = tl.broadcast_to(tl.load(words, mask=masked, other=-1)[:, None], (M, N))
    for w in tl.static_range(1, WORDS):
        bits = tl.where(column >= 32 * w, tl.load(words + w, mask=masked, other=-1)[:, None], bits)
    return (bits >> (column % 32)) & 1 != 0


@triton.jit
def addresses(pointer, rows, heads, DIM: tl.constexpr, PAD: tl.constexpr, WIDE: tl.constexpr):
    """Pointers [rows, PAD] into one head's rows; WIDE where a tensor passes 2^31 elements."""
    if WIDE:
        rows = rows.to(tl.int64)
    return pointer + rows[:, None] * (heads * DIM) + tl.arange(0, PAD)[None, :]


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
def store_rows(pointer, rows, exists, heads, tile, DIM: tl.constexpr, PAD: tl.constexpr, WIDE: tl.constexpr):
    """Writes [M, PAD] to one head's rows, rounded to the tensor's dtype."""
    inside = exists[:, None] & (tl.arange(0, PAD)[None, :] < DIM)
    where = addresses(pointer, rows, heads, DIM, PAD, WIDE)
    tl.store(where, tile.to(pointer.dtype.element_ty), mask=inside)
