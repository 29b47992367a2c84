"""Attention of one new position a row: it goes into the cache, and reads the slots that its query sees."""

import triton
import triton.language as tl

from .dependent import begin, wait

LOWEST = tl.constexpr(-1e38)  # below every score, and finite: exp2 of a difference of two stays a number


@triton.jit
def step_attention(
    qkv, cache, done, members, words, begins, places, ends, parts, sums,
    BATCH: tl.constexpr, HEADS: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr,
    KEY_PAD: tl.constexpr, VALUE_PAD: tl.constexpr, MEMBERS: tl.constexpr, SLOTS: tl.constexpr,
    WORDS: tl.constexpr, PLACES: tl.constexpr, RAGGED: tl.constexpr, PARTS: tl.constexpr, TILE: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """One part of the keys of one head of one row: sums of exp2(score) and of values so weighted, and the top score.

    The new key is taken from qkv, by the first part, so that nobody waits for it to arrive in the cache. Tables and
    older keys are from before this step: the first tile of them comes while the kernel before still makes qkv.
    """
    member = tl.program_id(0) % MEMBERS
    row = tl.program_id(0) // MEMBERS
    part = tl.program_id(1)
    head = tl.load(members + member)
    at = tl.load(done + row)
    if RAGGED:
        at = at * BATCH + row
    words += (at * MEMBERS + member) * WORDS
    begins += at * WORDS
    ends += (at * MEMBERS + member) * 2
    end = tl.load(ends + 1) * 32
    d = tl.arange(0, KEY_PAD)
    e = tl.arange(0, VALUE_PAD)
    cache += (row.to(tl.int64) * SLOTS * MEMBERS + member) * (KEY + VALUE)
    seen, k, v = _tile(cache, words, begins, part * TILE, end, d, e, KEY, VALUE, MEMBERS, TILE)
    wait(PDL)
    begin(PDL)  # not before: programs of the projection would take room that parts of the keys wait for
    line = qkv + row * HEADS * (2 * KEY + VALUE) + head * KEY
    q = tl.load(line + d, mask=d < KEY, other=0.0).to(tl.float32) * (1.4426950408889634 / KEY**0.5)
    key = tl.load(line + HEADS * KEY + d, mask=d < KEY, other=0.0)
    line = qkv + row * HEADS * (2 * KEY + VALUE) + 2 * HEADS * KEY + head * VALUE
    value = tl.load(line + e, mask=e < VALUE, other=0.0)
    if part == 0:
        for number in tl.static_range(PLACES):
            place = tl.load(places + (at * MEMBERS + member) * PLACES + number)
            slot = cache + place.to(tl.int64) * MEMBERS * (KEY + VALUE)
            tl.store(slot + d, key.to(cache.dtype.element_ty), mask=d < tl.where(place >= 0, KEY, 0))
            tl.store(
                slot + KEY + e, value.to(cache.dtype.element_ty), mask=e < tl.where(place >= 0, VALUE, 0)
            )
    seen_itself = (tl.load(ends) != 0) & (part == 0)
    top = tl.where(seen_itself, tl.sum(q * key.to(tl.float32), 0), LOWEST)
    total = tl.where(seen_itself, 1.0, 0.0)
    found = tl.where(seen_itself, value.to(tl.float32), 0.0)
    top, total, found = _fold(q, seen, k, v, top, total, found)
    for first in range((part + PARTS) * TILE, end, PARTS * TILE):
        seen, k, v = _tile(cache, words, begins, first, end, d, e, KEY, VALUE, MEMBERS, TILE)
        top, total, found = _fold(q, seen, k, v, top, total, found)
    if PARTS == 1:
        found = found / tl.where(total > 0, total, 1.0)
    at_part = (row * HEADS + head) * PARTS + part
    tl.store(parts + at_part * VALUE + e, found, mask=e < VALUE)
    tl.store(sums + at_part * 2, top)
    tl.store(sums + at_part * 2 + 1, total)


@triton.jit
def _tile(
    cache, words, begins, first, end, d, e,
    KEY: tl.constexpr, VALUE: tl.constexpr, MEMBERS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Which of the slots first up to first + TILE are seen, and their keys and values; slots count along the words."""
    lane = first + tl.arange(0, TILE)
    word = tl.load(words + lane // 32, mask=lane < end, other=0)
    slot = tl.load(begins + lane // 32, mask=lane < end, other=0) + lane % 32
    seen = ((word >> (lane % 32)) & 1) != 0
    start = cache + slot.to(tl.int64)[:, None] * MEMBERS * (KEY + VALUE)
    k = tl.load(start + d[None, :], mask=seen[:, None] & (d < KEY)[None, :], other=0.0)
    v = tl.load(start + KEY + e[None, :], mask=seen[:, None] & (e < VALUE)[None, :], other=0.0)
    return seen, k, v


@triton.jit
def _fold(q, seen, k, v, top, total, found):
    """The sums with a tile's keys among them."""
    score = tl.where(seen, tl.sum(q[None, :] * k.to(tl.float32), 1), LOWEST)
    new = tl.maximum(top, tl.max(score, 0))
    shrink = tl.exp2(top - new)
    weight = tl.where(seen, tl.exp2(score - new), 0.0)
    total = total * shrink + tl.sum(weight, 0)
    return new, total, found * shrink + tl.sum(weight[:, None] * v.to(tl.float32), 0)
