// Between rows in memory and rows in lanes.
#pragma once

#include "product.h"

namespace blocksparse {

template <int step>
inline void swap_bit(Vec (&rows)[kLanes]) {
  Bits low, high;
  for (int lane = 0; lane < kLanes; ++lane) {
    low[lane] = lane & step ? lane - step + kLanes : lane;
    high[lane] = lane & step ? lane + kLanes : lane + step;
  }
#pragma GCC unroll 16
  for (int row = 0; row < kLanes; ++row) {
    if (row & step) continue;
    const Vec a = rows[row], b = rows[row + step];
    rows[row] = __builtin_shuffle(a, b, low);
    rows[row + step] = __builtin_shuffle(a, b, high);
  }
}

// Transposes a square of registers: each stage exchanges one bit of the row number with the same bit of the lane.
inline void transpose(Vec (&rows)[kLanes]) {
  swap_bit<1>(rows);
  swap_bit<2>(rows);
  if constexpr (kLanes > 4) swap_bit<4>(rows);
  if constexpr (kLanes > 8) swap_bit<8>(rows);
}

// to[column][kLanes] = from[kLanes][column] * scale, for `width` columns.
inline void transpose_in(const float* from, int32_t width, Vec scale, float* to) {
  for (int32_t column = 0; column < width; column += kLanes) {
    Vec square[kLanes];
    for (int i = 0; i < kLanes; ++i) square[i] = load(from + i * width + column) * scale;
    transpose(square);
    for (int i = 0; i < kLanes; ++i) store(to + (column + i) * kLanes, square[i]);
  }
}

// to[kLanes][column] = from[column][kLanes] * scale, for `width` columns and a factor for each row.
inline void transpose_out(const float* from, int32_t width, Vec scale, float* to) {
  for (int32_t column = 0; column < width; column += kLanes) {
    Vec square[kLanes];
    for (int i = 0; i < kLanes; ++i) square[i] = load(from + (column + i) * kLanes) * scale;
    transpose(square);
    for (int i = 0; i < kLanes; ++i) store(to + i * width + column, square[i]);
  }
}

}  // namespace blocksparse
