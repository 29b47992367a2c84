// Where a block of threads works: its row tile, the rows and masks it gathers.
#pragma once

#include "config.h"

typedef typename Choose<kWide, i64, int>::Type Offset;  // inside a tensor

constexpr int kWords = (kColumns + 31) / 32;

struct Tile {
  i64 batch;
  int head;
  int stride;     // the head's residue classes
  int first_row;  // of the row tile, that this block computes
  int count;      // rows of the row tile
  int steps;      // column tiles, a part of one at a time
  int full;       // so many steps from the first on need no mask
  const int *rows, *columns, *mask, *masks;
};

// The number of a row tile's span among those of all batch rows and orders.
DEVICE i64 span_of(int tile, int batches, const Tile& where, int heads) {
  const i64 span = i64(tile) * batches + where.batch;
  return kOrders ? span * heads + where.head : span;
}

// Heads of the same rows run side by side, since they share memory pages; with kHeaviestFirst batch rows alternate too,
// so that the heaviest row tiles of all of them start first. False where the head has fewer row tiles than `tiles`.
DEVICE bool locate(const Side& side, int heads, int tiles, Tile* out) {
  const int program = block_index() / kRowParts, batches = block_count() / kRowParts / (heads * tiles);
  out->head = program % heads;
  out->batch = kHeaviestFirst ? program / heads % batches : program / (heads * tiles);
  int tile = kHeaviestFirst ? program / (heads * batches) : program / heads % tiles;
  if (!kShared) {
    const int plan = side.head_index[out->head];
    tile += side.head_tiles[plan];
    if (tile >= side.head_tiles[plan + 1]) return false;
  }
  const int* span = side.offset + (kSegments ? 3 * span_of(tile, batches, *out, heads) : tile);
  const int first = span[0];
  out->stride = kPermuted ? side.residues[out->head] : 1;
  out->first_row = block_index() % kRowParts * kRows;
  out->count = side.row_count[tile];
  out->steps = (kSegments ? span[1] : span[1] - first) * kColumnParts;
  out->full = (kSegments ? span[2] : side.full[tile]) * kColumnParts;
  out->rows = side.rows + i64(tile) * (kPlanRows / kGranule);
  out->columns = side.columns + i64(first) * (kPlanColumns / kGranule);
  out->mask = side.mask + first;
  out->masks = side.masks;
  return out->first_row < out->count;
}

DEVICE bool exists(const Tile& tile, int row) { return tile.first_row + row < tile.count; }

DEVICE int own_row(const Tile& tile, int row, int time) {
  return gathered(tile.rows, tile.first_row + row, time, tile.stride);
}

// Row 0 past the last step. kReaders: a key head's readers follow each other, `time` rows each.
template <bool kReaders>
DEVICE int column_row(const Tile& tile, int step, int n, int time) {
  if (step >= tile.steps) return 0;
  const int* granules = tile.columns + i64(step / kColumnParts) * (kPlanColumns / kGranule);
  n += step % kColumnParts * kColumns;
  if (!kReaders) return gathered(granules, n, time, tile.stride);
  const int number = granules[n / kGranule], own = time / kGranule, reader = number / own;
  const int granule = number - reader * own;
  return gathered(&granule, n % kGranule, time, tile.stride) + reader * time;
}

DEVICE int mask_number(const Tile& tile, int step) { return step < tile.steps ? tile.mask[step / kColumnParts] : 0; }

// Who sees whom in one step, for the rows of which this lane has results.
struct Seen {
  u32 word[kSlots][kWords];
  bool all;  // the same in all threads

  METHOD bool operator()(int tile, int i) const {
    return word[slot_of(i)][tile / 4] >> (tile % 4 * 8 + column_of(i)) & 1;
  }
};

// Puts `other` where nobody sees. Most steps are seen whole: they ask no bit.
DEVICE void keep_seen(float (&c)[kScoreTiles][kPart], const Seen& seen, float other) {
  if (seen.all) return;
  UNROLL for (int t = 0; t < kScoreTiles; ++t) UNROLL for (int i = 0; i < kPart; ++i) c[t][i] =
      seen(t, i) ? c[t][i] : other;
}

DEVICE Seen seen_in(const Tile& tile, int step, int number, int warp_row) {
  Seen seen;
  seen.all = step < tile.full || step >= tile.steps;
  const int bit = step % kColumnParts * kColumns;
  UNROLL for (int s = 0; s < kSlots; ++s) UNROLL for (int w = 0; w < kWords; ++w) {
    const int row = tile.first_row + warp_row + row_of(s);
    seen.word[s][w] = ~0u;
    if (seen.all || row >= kPlanRows) continue;
    const i64 at = (i64(number) * kPlanRows + row) * kMaskWords + bit / 32 + w;
    seen.word[s][w] = u32(tile.masks[at]) >> bit % 32;
  }
  return seen;
}
