// The plan's column tiles cut by segment numbers, for each batch row, before a kernel runs: the lists of
// ../kernels/cut.py, which describes them, by the same rules. Each of kShares blocks sorts all column tiles of a row
// tile and writes every kShares-th of those that it keeps.
#pragma once

#include "plan.h"

constexpr int kThreads = 32 * WARPS, kShares = SHARES;
constexpr int kParts = kPlanColumns / kGranule;

struct Cut {  // what becomes of the plan's lists; sources: what a mask is made of
  int *spans, *columns, *mask, *masks, *sources;
};

struct Numbers {  // segment numbers of one batch row's positions, in tensor rows
  const int* of;
  int time;
};

enum Kind { kHidden, kWhole, kPlanned, kParted };  // of a column tile; kParted: several numbers meet in it

struct Room {  // in shared memory
  int own[kPlanRows], column[kPlanColumns], kind[kThreads];
};
static_assert(sizeof(Room) == SHARED_BYTES, "what __init__.py asks for");

DEVICE int smaller_of(int a, int b) { return a < b ? a : b; }
DEVICE int larger_of(int a, int b) { return a > b ? a : b; }

// A granule's first tensor row: of queries of several heads, one behind the other, in the first of these.
DEVICE int first_row(const Numbers& numbers, int granule, int stride) {
  if (kGroup > 1) granule %= numbers.time / kGranule;
  return tensor_row(granule * kGranule, numbers.time, stride);
}

// least, greatest: of the row tile's numbers.
DEVICE Kind kind_of(const int* granules, bool shown_whole, const Numbers& numbers, int stride, int least,
                    int greatest) {
  int low = numbers.of[first_row(numbers, granules[0], stride)], high = low;
  for (int part = 0; part < kParts; ++part) {
    const int* number = numbers.of + first_row(numbers, granules[part], stride);
    for (int n = 0; n < kGranule; ++n, number += kPermuted ? stride : 1) {
      low = smaller_of(low, *number), high = larger_of(high, *number);
    }
  }
  const bool parted = low != high || low != least || high != greatest || low < 0;
  if (shown_whole && !parted) return kWhole;
  if (smaller_of(high, greatest) < larger_of(larger_of(low, least), 0)) return kHidden;
  return parted ? kParted : kPlanned;
}

// One row tile of one batch row and group: `own` the numbers of its rows' side, `others` of its columns'.
struct Cutter {
  Side plan;
  Cut cut;
  Room* room;
  Numbers own, others;
  const int *columns, *mask;  // of the row tile, from its first column tile on
  int share, start, count, full, stride, least, greatest;

  METHOD void load_own(const int* rows) {
    for (int row = thread_index(); row < kPlanRows; row += kThreads) {
      room->own[row] = own.of[gathered(rows, row, own.time, stride)];
    }
    sync();
    least = greatest = room->own[0];
    for (int row = 1; row < kPlanRows; ++row) {
      least = smaller_of(least, room->own[row]), greatest = larger_of(greatest, room->own[row]);
    }
  }

  // Sorts kThreads column tiles from `first` on, each thread one.
  METHOD void sort(int first) const {
    const int tile = first + thread_index();
    sync();  // the kinds before these have been counted
    room->kind[thread_index()] =
        tile < count ? kind_of(columns + i64(tile) * kParts, tile < full, others, stride, least, greatest) : kHidden;
    sync();
  }

  // Of the tiles just sorted, the first `among` of them, those that need a mask or those that need none.
  METHOD int counted(bool masked, int among) const {
    int found = 0;
    for (int i = 0; i < among; ++i) found += masked ? room->kind[i] >= kPlanned : room->kind[i] == kWhole;
    return found;
  }

  METHOD void place(int tile, int kind, int slot) const {
    slot += start;
    for (int part = 0; part < kParts; ++part) {
      cut.columns[i64(slot) * kParts + part] = columns[i64(tile) * kParts + part];
    }
    cut.mask[slot] = slot;
    cut.sources[slot] = 2 * (tile < full ? -1 : mask[tile]) + (kind == kParted);
  }

  // Writes a mask: the plan's, and the segments' in one with it.
  METHOD void write_mask(int slot) const {
    const int source = cut.sources[slot], planned = source >> 1;
    const bool parted = source & 1;
    sync();  // the columns before these have been compared
    for (int n = thread_index(); parted && n < kPlanColumns; n += kThreads) {
      const int granule = cut.columns[i64(slot) * kParts + n / kGranule];
      room->column[n] = others.of[first_row(others, granule, stride) + n % kGranule * (kPermuted ? stride : 1)];
    }
    sync();
    for (int at = thread_index(); at < kPlanRows * kMaskWords; at += kThreads) {
      u32 seen = planned < 0 ? ~0u : plan.masks[i64(planned) * (kPlanRows * kMaskWords) + at];
      if (parted) seen &= meeting(room->own[at / kMaskWords], at % kMaskWords);
      cut.masks[i64(slot) * (kPlanRows * kMaskWords) + at] = seen;
    }
  }

  // Which of a word's columns have this number; a negative one meets nobody.
  METHOD u32 meeting(int number, int word) const {
    u32 seen = 0;
    for (int bit = 0; bit < 32 && word * 32 + bit < kPlanColumns; ++bit) {
      seen |= u32(number >= 0 && room->column[word * 32 + bit] == number) << bit;
    }
    return seen;
  }

  METHOD void run(int* span) const {
    int wholes = 0;
    for (int first = 0; first < full; first += kThreads) sort(first), wholes += counted(false, kThreads);
    int taken = 0, masked = wholes;
    for (int first = 0; first < count; first += kThreads) {
      sort(first);
      const int kind = room->kind[thread_index()];
      const bool needs_mask = kind >= kPlanned;
      const int slot = (needs_mask ? masked : taken) + counted(needs_mask, thread_index());
      if (kind != kHidden && slot % kShares == share) place(first + thread_index(), kind, slot);
      taken += counted(false, kThreads), masked += counted(true, kThreads);
    }
    if (share == 0 && thread_index() == 0) span[0] = start, span[1] = masked, span[2] = wholes;
    sync();  // below, threads read what others have written above
    for (int slot = wholes; slot < masked; ++slot) {
      if (slot % kShares == share) write_mask(start + slot);
    }
  }
};

DEVICE void cut_tiles(const Side& plan, const Cut& cut, Numbers own, Numbers others, int heads, int batches,
                      int column_tiles) {
  SHARED_MEMORY(memory);
  const int groups = kOrders ? heads : 1, program = block_index() / kShares;
  const int group = program % groups, batch = program / groups % batches, tile = program / groups / batches;
  if (kOrders && !kShared) {
    const int like = plan.head_index[group];
    if (tile < plan.head_tiles[like] || tile >= plan.head_tiles[like + 1]) return;
  }
  own.of += i64(batch) * own.time, others.of += i64(batch) * others.time;
  const int first = plan.offset[tile], stride = kPermuted ? plan.residues[group] : 1;
  Cutter cutter = {plan,
                   cut,
                   reinterpret_cast<Room*>(memory),
                   own,
                   others,
                   plan.columns + i64(first) * kParts,
                   plan.mask + first,
                   block_index() % kShares,
                   (batch * groups + group) * column_tiles + first,
                   plan.offset[tile + 1] - first,
                   plan.full[tile],
                   stride,
                   0,
                   0};
  cutter.load_own(plan.rows + i64(tile) * (kPlanRows / kGranule));
  cutter.run(cut.spans + i64(program) * 3);
}
