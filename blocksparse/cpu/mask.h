// The bit mask of one strip (kLanes rows) of a masked tile.
#pragma once

#include "plan.h"
#include "product.h"

namespace blocksparse {

class StripMask {
 public:
  // Every row sees every column.
  explicit StripMask(int32_t columns) : end(columns) {}

  // words: the tile's mask, `mask_words` a row, from the strip's first row on; rows past `rows` see nothing.
  StripMask(const uint32_t* words, int32_t mask_words, int32_t rows) {
    rows = std::min(rows, kLanes);
    for (int32_t word = 0; word < mask_words; ++word) {
      uint32_t seen = 0;
      for (int32_t row = 0; row < rows; ++row) seen |= words[row * mask_words + word];
      bits_[word] = Bits{};
      if (seen == 0) continue;
      for (int32_t row = 0; row < rows; ++row) {
        bits_[word][row] = static_cast<int32_t>(words[row * mask_words + word]);
      }
      if (end == 0) begin = word * 32 + __builtin_ctz(seen) / kRows * kRows;
      end = word * 32 + (32 - __builtin_clz(seen) + kRows - 1) / kRows * kRows;
    }
  }

  // `value` where the lanes see `column`, else `otherwise`.
  Vec select(int32_t column, Vec value, float otherwise) const {
    const Bits seen = bits_[column / 32] & static_cast<int32_t>(1u << column % 32);
    return seen != 0 ? value : broadcast(otherwise);
  }

  int32_t begin = 0, end = 0;  // columns that some row sees lie in begin .. end, multiples of 8; 0, 0 if none

 private:
  Bits bits_[kMostRows / 32];
};

}  // namespace blocksparse
