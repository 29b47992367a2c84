// The tile plan as the kernels read it: a view of the packed int32 vector that plan/blob.py writes.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "plan_words.h"

namespace blocksparse {

constexpr int32_t kMostRows = 192;  // of a tile; columns are at most 128

// Where the rows of one side lie: plan row r is tensor row (r % period) * stride + r / period. By key, the queries of
// the heads that read a key head follow each other: those of its second one start at row period * stride, and so on.
struct Order {
  int32_t period, stride;
};

// For each row tile of one side, the column tiles of the other side to visit (plan/tiling.py, TilePlan).
struct TilePlan {
  int32_t row_tile, column_tile, granule, tiles, column_tiles, distinct_masks, most_row_tiles, most_column_tiles;
  const int32_t *head_tiles, *rows, *row_count, *offset, *full, *columns, *mask;
  const uint32_t* masks;

  int32_t mask_words() const { return (column_tile + 31) / 32; }
  const int32_t* row_granules(int32_t tile) const { return rows + int64_t(tile) * (row_tile / granule); }
  const int32_t* granules(int32_t column) const { return columns + int64_t(column) * (column_tile / granule); }
  bool is_full(int32_t tile, int32_t column) const { return column < offset[tile] + full[tile]; }
  const uint32_t* mask_of(int32_t column) const { return masks + int64_t(mask[column]) * row_tile * mask_words(); }
};

struct Plan {
  int32_t query_time, key_time, heads, distinct;
  const int32_t *head_index, *residues;
  int32_t key_heads, distinct_keys;  // of by_key
  const int32_t *key_index, *key_residues;
  TilePlan by_query, by_key;
  std::array<uint64_t, 3> identity;  // of its content, in this process

  int32_t group() const { return heads / key_heads; }  // query head h reads key head h / group
  Order query_order(int32_t head) const { return {query_time / residues[head], residues[head]}; }
  Order key_order(int32_t head) const { return {key_time / residues[head], residues[head]}; }

  // 0: every head's rows lie in the tensor's order; 1: all in another one; 2: heads lie in different orders.
  int32_t orders() const {
    for (int32_t head = 1; head < heads; ++head) {
      if (residues[head] != residues[0]) return 2;
    }
    return residues[0] != 1;
  }
};

// Views int32 words as a plan, unchecked.
Plan view_plan(const int32_t* data);

// Views `size` int32 as a plan whose every word was checked: once for each content, which is hashed on every call,
// since memory that held a good plan may hold another one now. Returns what is wrong with it, or an empty string.
std::string read_plan(const int32_t* data, int64_t size, Plan* plan);

}  // namespace blocksparse
