"""The plan's column tiles cut by segment numbers, for each batch row, before a kernel runs.

Positions of different segment numbers do not see each other, whatever the plan shows, and those of a negative one see
nobody. So each row tile keeps of its column tiles those that can hold a number of its own. First come those that every
row sees whole, then the others, each with a mask of its own: the plan's, and where several numbers meet in the tile,
the segments' in one with it. The kernels then read these lists in the place of the plan's, and nothing else in them
changes.

`tiles` are the plan's lists of one side, `cut` what becomes of them:

    spans    [row tiles, batch, groups, 3]      where a row tile's column tiles start, how many there are, how many of
                                                them, the first ones, need no mask
    columns  [batch, groups, column tiles, N / g], mask [batch, groups, column tiles]    as in the plan
    masks    [batch, groups, column tiles, M, N / 32]   a mask for every place in `columns`
    sources  [batch, groups, column tiles]      what a mask is made of: twice its number in the plan, or -2 where the
                                                plan shows all; one more where segments part the tile

groups: heads where ORDERS, as their rows lie in different orders, else 1. batches, column_tiles: the sizes of
`batch` and `column tiles`. mask_words: of all masks; not read, but the launcher refuses a number above 32 bits, and the
kernels count with so many.

SHARES programs work on a row tile. Each sorts all of its column tiles, which takes a few loads, and writes every
SHARES-th of what is kept, since masks take more. So no program waits for another one's lists.
"""

import triton
import triton.language as tl

from .primitives import gathered_rows, key_extent, query_extent, tensor_rows


@triton.jit
def granule_rows(granules, extent, stride, flags):
    """The first tensor row of each of these granules."""
    if flags.GROUP > 1:  # of queries of several heads one behind the other, which have the same numbers
        granules %= extent.rows // flags.GRANULE
    return tensor_rows(granules * flags.GRANULE, extent.rows, stride, flags.PERMUTED)


@triton.jit
def load_numbers(ids, rows, extent, flags):
    """The segment numbers of rows; BOUNDED: a row past the tensors' end meets nobody."""
    if flags.QK.BOUNDED:
        return tl.load(ids + rows, mask=(rows >= 0) & (rows < extent.time), other=-1)
    return tl.load(ids + rows)


@triton.jit
def ranges(columns, ids, j, count, extent, stride, flags):
    """(tile numbers from j on, the least and the greatest segment number of each)"""
    parts: tl.constexpr = flags.N // flags.GRANULE
    tile = j + tl.arange(0, flags.AT_ONCE)
    place = tl.minimum(tile, count - 1)[:, None] * parts + tl.arange(0, parts)[None, :]
    first = granule_rows(tl.load(columns + place), extent, stride, flags)
    within = tl.arange(0, flags.GRANULE) * (stride if flags.PERMUTED else 1)
    numbers = load_numbers(ids, first[:, :, None] + within[None, None, :], extent, flags)
    return tile, tl.min(tl.min(numbers, 2), 1), tl.max(tl.max(numbers, 2), 1)


@triton.jit
def sort_out(columns, ids, j, count, full, extent, stride, least, greatest, flags):
    """(tile numbers from j on, which of them need no mask, which need one, in which several numbers meet); the rest the
    rows do not meet.

    least, greatest: of the row tile's numbers. KEEP: none is left out, as in a closed plan each key's gradient is
    written by the one row tile that visits it.
    """
    tile, low, high = ranges(columns, ids, j, count, extent, stride, flags)
    parted = (low != high) | (low != least) | (high != greatest) | (low < 0)
    whole = (tile < full) & (parted == 0)
    meets = tl.minimum(high, greatest) >= tl.maximum(tl.maximum(low, least), 0)
    kept = tile < count if flags.KEEP else (tile < count) & meets
    return tile, whole, kept & (whole == 0), parted


@triton.jit
def place_tiles(
    tile, chosen, source, place, share, columns, start, cut_columns, cut_mask, cut_sources, flags
):
    """Writes the chosen tiles from `place` on, those that are this share's."""
    parts: tl.constexpr = flags.N // flags.GRANULE
    place += tl.cumsum(chosen.to(tl.int32), 0) - 1
    mine = chosen & (place % flags.SHARES == share)
    slot = start + place
    part = tl.arange(0, parts)[None, :]
    my_parts = mine[:, None] & (part >= 0)
    granules = tl.load(columns + tile[:, None] * parts + part, mask=my_parts, other=0)
    tl.store(cut_columns + slot[:, None] * parts + part, granules, mask=my_parts)
    tl.store(cut_mask + slot, slot, mask=mine)
    tl.store(cut_sources + slot, source, mask=mine)


@triton.jit
def store_masks(
    own,
    PART: tl.constexpr,
    ids,
    extent,
    stride,
    masks,
    first,
    last,
    cut_columns,
    cut_sources,
    cut_masks,
    flags,
):
    """One part's rows of the masks of every SHARES-th place from `first` to `last`."""
    bits: tl.constexpr = min(flags.N, 32)
    words: tl.constexpr = flags.N // bits
    own = tl.where(own < 0, -1, own)
    row, word = PART * flags.M + tl.arange(0, flags.M)[:, None], tl.arange(0, words)[None, :]
    bit = tl.arange(0, bits)[None, :]
    column = tl.arange(0, words)[:, None] * bits + bit
    for slot in range(first, last, flags.SHARES):
        source = tl.load(cut_sources + slot)
        at = row * words + word
        planned = masks + ((source >> 1) * (flags.M * flags.PARTS * words) + at)
        shown = tl.load(planned, mask=at * 0 + source >= 0, other=-1)
        if source & 1 != 0:
            tile = cut_columns + slot * (flags.N // flags.GRANULE)
            rows = granule_rows(tl.load(tile + column // flags.GRANULE), extent, stride, flags)
            rows += column % flags.GRANULE * (stride if flags.PERMUTED else 1)
            numbers = load_numbers(ids, rows, extent, flags)
            numbers = tl.where(numbers < 0, -2, numbers)
            same = (own[:, None, None] == numbers[None, :, :]).to(tl.int32) << bit[None, :, :]
            shown &= tl.sum(same, 2)
        tl.store(cut_masks + (slot * (flags.M * flags.PARTS * words) + at), shown)


@triton.jit
def own_numbers(ids, batch, rows, part, extent, stride, flags):
    """The segment numbers of the rows of a part of a row tile."""
    own_rows = gathered_rows(rows, part, part + 1, extent, stride, flags.M, flags)
    return load_numbers(ids + batch.to(tl.int64) * extent.time, own_rows, extent, flags)


@triton.jit
def cut_tiles(
    own_ids, ids, cut_spans, cut_columns, cut_mask, cut_masks, cut_sources, plan, heads, own_extent, extent, batches,
    column_tiles, flags,
):  # fmt: skip
    """A share of the column tiles of one row tile in one batch row and group."""
    groups = heads if flags.ORDERS else 1
    share, program = tl.program_id(0) % flags.SHARES, tl.program_id(0) // flags.SHARES
    group, batch, tile = program % groups, program // groups % batches, program // (groups * batches)
    if flags.ORDERS and not flags.SHARED:
        like = tl.load(plan.head_index + group)
        if (tile < tl.load(plan.head_tiles + like)) | (tile >= tl.load(plan.head_tiles + like + 1)):
            return
    stride = tl.load(plan.residues + group) if flags.PERMUTED else 1
    first, full = tl.load(plan.offset + tile), tl.load(plan.full + tile)
    count = tl.load(plan.offset + tile + 1) - first
    columns, mask = plan.columns + first * (flags.N // flags.GRANULE), plan.mask + first
    start = (batch * groups + group) * column_tiles + first
    before = batch.to(tl.int64) * extent.time
    # A batch row is whole granules, unless the tensors end before the plan: so a thread loads four numbers at once.
    ids += before if flags.QK.BOUNDED else tl.multiple_of(before, flags.GRANULE)
    own = own_numbers(own_ids, batch, plan.rows, tile * flags.PARTS, own_extent, stride, flags)
    least, greatest = tl.min(own, 0), tl.max(own, 0)
    for part in tl.static_range(1, flags.PARTS):
        others = own_numbers(own_ids, batch, plan.rows, tile * flags.PARTS + part, own_extent, stride, flags)
        least, greatest = tl.minimum(least, tl.min(others, 0)), tl.maximum(greatest, tl.max(others, 0))
    wholes = 0
    for j in range(0, full, flags.AT_ONCE):
        _, whole, _, _ = sort_out(columns, ids, j, count, full, extent, stride, least, greatest, flags)
        wholes += tl.sum(whole.to(tl.int32), 0)
    taken, place = 0, wholes
    for j in range(0, count, flags.AT_ONCE):
        numbers, whole, masked, parted = sort_out(
            columns, ids, j, count, full, extent, stride, least, greatest, flags
        )
        source = tl.load(mask + numbers, mask=masked & (numbers >= full), other=-1) * 2 + parted.to(tl.int32)
        place_tiles(
            numbers, whole, source, taken, share, columns, start, cut_columns, cut_mask, cut_sources, flags
        )
        place_tiles(
            numbers, masked, source, place, share, columns, start, cut_columns, cut_mask, cut_sources, flags
        )
        taken += tl.sum(whole.to(tl.int32), 0)
        place += tl.sum(masked.to(tl.int32), 0)
    if share == 0:
        span = cut_spans + program * 3
        tl.store(span, start)
        tl.store(span + 1, place)
        tl.store(span + 2, wholes)
    tl.debug_barrier()  # below, threads read what others have written above
    mine = (share - wholes % flags.SHARES + flags.SHARES) % flags.SHARES
    begin, end = start + wholes + mine, start + place
    store_masks(
        own, 0, ids, extent, stride, plan.masks, begin, end, cut_columns, cut_sources, cut_masks, flags
    )
    for part in tl.static_range(1, flags.PARTS):
        others = own_numbers(own_ids, batch, plan.rows, tile * flags.PARTS + part, own_extent, stride, flags)
        store_masks(
            others,
            part,
            ids,
            extent,
            stride,
            plan.masks,
            begin,
            end,
            cut_columns,
            cut_sources,
            cut_masks,
            flags,
        )


@triton.jit
def attention_cut_queries(
    query_segments, key_segments, cut_spans, cut_columns, cut_mask, cut_masks, cut_sources, plan, sizes, batches,
    column_tiles, mask_words, flags: tl.constexpr,
):  # fmt: skip
    """The side whose rows are queries."""
    cut_tiles(
        query_segments, key_segments, cut_spans, cut_columns, cut_mask, cut_masks, cut_sources, plan, sizes.heads,
        query_extent(sizes, flags), key_extent(sizes, flags), batches, column_tiles, flags,
    )  # fmt: skip


@triton.jit
def attention_cut_keys(
    query_segments, key_segments, cut_spans, cut_columns, cut_mask, cut_masks, cut_sources, plan, sizes, batches,
    column_tiles, mask_words, flags: tl.constexpr,
):  # fmt: skip
    """The side whose rows are keys."""
    cut_tiles(
        key_segments, query_segments, cut_spans, cut_columns, cut_mask, cut_masks, cut_sources, plan, sizes.heads,
        key_extent(sizes, flags), query_extent(sizes, flags), batches, column_tiles, flags,
    )  # fmt: skip
