"""The plan's column tiles cut by segment numbers, for each batch row, before a kernel runs.

Positions of different segment numbers do not see each other, whatever the plan shows. So each row tile keeps of its
column tiles those that can hold a number of its own. First come those that every row sees whole, then the others, each
with a mask of its own that is the plan's and the segments' in one. The kernels then read these lists in the place of
the plan's, and nothing else in them changes.

`tiles` are the plan's lists of one side, `cut` what becomes of them:

    spans    [row tiles, batch, groups, 3]      where a row tile's column tiles start, how many there are, how many of
                                                them, the first ones, need no mask
    columns  [batch, groups, column tiles, N / g], mask [batch, groups, column tiles]    as in the plan
    masks    [batch, groups, column tiles, M, N / 32]   a mask for every place in `columns`

groups: heads where PERMUTED, as each head may lie in an order of its own, else 1. batches, column_tiles: the sizes of
`batch` and `column tiles`. mask_words: of all masks; not read, but the launcher refuses a number above 32 bits, and the
kernels count with so many.
"""

import triton
import triton.language as tl

from .primitives import gathered_rows, tensor_rows

AT_ONCE = tl.constexpr(
    16
)  # column tiles whose numbers are loaded at a time, or every one would wait for memory


@triton.jit
def rows_at(granules, places, time, stride, flags):
    """Tensor rows at `places` of the rows that a list of granules holds, one granule behind the other."""
    granule = tl.load(granules + places // flags.GRANULE)
    if flags.GROUP > 1:  # of queries of several heads one behind the other, which have the same numbers
        granule %= time // flags.GRANULE
    first = tensor_rows(granule * flags.GRANULE, time, stride, flags.PERMUTED)
    return first + places % flags.GRANULE * (stride if flags.PERMUTED else 1)


@triton.jit
def sort_out(columns, ids, j, count, full, time, stride, least, greatest, flags):
    """(tile numbers from j on, which of them need no mask, which need one); the rest the rows do not meet.

    least, greatest: of the row tile's numbers. KEEP: none is left out, as in a closed plan each key's gradient is
    written by the one row tile that visits it.
    """
    tile = j + tl.arange(0, AT_ONCE)
    exists = tile < count
    places = tl.where(exists, tile, 0)[:, None] * flags.N + tl.arange(0, flags.N)[None, :]
    numbers = tl.load(ids + rows_at(columns, places, time, stride, flags))
    low, high = tl.min(numbers, 1), tl.max(numbers, 1)
    whole = exists & (tile < full) & (low == high) & (low == least) & (high == greatest)
    meets = exists if flags.KEEP else exists & (low <= greatest) & (high >= least)
    return tile, whole, meets & (whole == 0)


@triton.jit
def place_tiles(tile, chosen, place, columns, mask, full, start, cut_columns, cut_mask, flags):
    """Writes the chosen tiles from `place` on; cut_mask gets the plan's mask numbers, -1 where it has none."""
    parts: tl.constexpr = flags.N // flags.GRANULE
    slot = start + place + tl.cumsum(chosen.to(tl.int32), 0) - 1
    part = tl.arange(0, parts)[None, :]
    chosen_parts = chosen[:, None] & (part >= 0)
    granules = tl.load(columns + tile[:, None] * parts + part, mask=chosen_parts, other=0)
    tl.store(cut_columns + slot[:, None] * parts + part, granules, mask=chosen_parts)
    planned = tl.load(mask + tile, mask=chosen & (tile >= full), other=-1)
    tl.store(cut_mask + slot, planned, mask=chosen)


@triton.jit
def store_masks(own, ids, time, stride, masks, first, last, cut_columns, cut_mask, cut_masks, flags):
    """The masks of the tiles at places first .. last: what the plan shows of what has one number."""
    bits: tl.constexpr = min(flags.N, 32)
    words: tl.constexpr = flags.N // bits
    row, bit = tl.arange(0, flags.M), tl.arange(0, bits)
    for slot in range(first, last):
        number = tl.load(cut_mask + slot)
        tile = cut_columns + slot * (flags.N // flags.GRANULE)
        for word in tl.static_range(words):
            numbers = tl.load(ids + rows_at(tile, word * bits + bit, time, stride, flags))
            same = (own[:, None] == numbers[None, :]).to(tl.int32) << bit[None, :]
            planned = masks + number * (flags.M * words) + row * words + word
            shown = tl.load(planned, mask=row * 0 + number >= 0, other=-1)
            to = cut_masks + slot * (flags.M * words) + row * words + word
            tl.store(to, tl.sum(same, 1) & shown)
        tl.store(cut_mask + slot, slot)


@triton.jit
def cut_tiles(
    own_ids, ids, cut_spans, cut_columns, cut_mask, cut_masks, plan, heads, own_time, time, batches, column_tiles, flags
):  # fmt: skip
    """The column tiles of one row tile in one batch row and group."""
    groups = heads if flags.PERMUTED else 1
    program = tl.program_id(0)
    group, batch, tile = program % groups, program // groups % batches, program // (groups * batches)
    if flags.PERMUTED and not flags.SHARED:
        like = tl.load(plan.head_index + group)
        if (tile < tl.load(plan.head_tiles + like)) | (tile >= tl.load(plan.head_tiles + like + 1)):
            return
    stride = tl.load(plan.residues + group) if flags.PERMUTED else 1
    first, full = tl.load(plan.offset + tile), tl.load(plan.full + tile)
    count = tl.load(plan.offset + tile + 1) - first
    columns, mask = plan.columns + first * (flags.N // flags.GRANULE), plan.mask + first
    start = (batch * groups + group) * column_tiles + first
    ids += batch.to(tl.int64) * time
    own_rows = gathered_rows(plan.rows, tile, tile + 1, own_time, stride, flags.M, flags)
    own = tl.load(own_ids + batch.to(tl.int64) * own_time + own_rows)
    least, greatest = tl.min(own, 0), tl.max(own, 0)
    wholes = 0
    for j in range(0, count, AT_ONCE):
        _, whole, _ = sort_out(columns, ids, j, count, full, time, stride, least, greatest, flags)
        wholes += tl.sum(whole.to(tl.int32), 0)
    taken, place = 0, wholes
    for j in range(0, count, AT_ONCE):
        numbers, whole, parted = sort_out(columns, ids, j, count, full, time, stride, least, greatest, flags)
        place_tiles(numbers, whole, taken, columns, mask, full, start, cut_columns, cut_mask, flags)
        place_tiles(numbers, parted, place, columns, mask, full, start, cut_columns, cut_mask, flags)
        taken += tl.sum(whole.to(tl.int32), 0)
        place += tl.sum(parted.to(tl.int32), 0)
    span = cut_spans + program * 3
    tl.store(span, start)
    tl.store(span + 1, place)
    tl.store(span + 2, wholes)
    tl.debug_barrier()  # below, threads read what others have written above
    store_masks(
        own,
        ids,
        time,
        stride,
        plan.masks,
        start + wholes,
        start + place,
        cut_columns,
        cut_mask,
        cut_masks,
        flags,
    )


@triton.jit
def attention_cut_queries(
    query_segments, key_segments, cut_spans, cut_columns, cut_mask, cut_masks, plan, sizes, batches, column_tiles,
    mask_words, flags: tl.constexpr,
):  # fmt: skip
    """The side whose rows are queries."""
    cut_tiles(
        query_segments, key_segments, cut_spans, cut_columns, cut_mask, cut_masks, plan, sizes.heads,
        sizes.query_time, sizes.key_time, batches, column_tiles, flags,
    )  # fmt: skip


@triton.jit
def attention_cut_keys(
    query_segments, key_segments, cut_spans, cut_columns, cut_mask, cut_masks, plan, sizes, batches, column_tiles,
    mask_words, flags: tl.constexpr,
):  # fmt: skip
    """The side whose rows are keys."""
    cut_tiles(
        key_segments, query_segments, cut_spans, cut_columns, cut_mask, cut_masks, plan, sizes.heads,
        sizes.key_time, sizes.query_time, batches, column_tiles, flags,
    )  # fmt: skip
