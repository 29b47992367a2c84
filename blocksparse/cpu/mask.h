// The bit mask of one strip (kLanes rows) of a masked tile.
#pragma once

#include "plan.h"
#include "product.h"

namespace blocksparse {

class StripMask {
 public:
  // The strip from `row` on of a tile of `count` rows; rows past them see nothing. mask: the tile's, null when every
  // row sees every column.
  StripMask(const TilePlan& tiles, const uint32_t* mask, int32_t row, int32_t count) {
    if (mask == nullptr) {
      end = tiles.column_tile;
      return;
    }
    const int32_t mask_words = tiles.mask_words(), rows = std::min(count - row, kLanes);
    const uint32_t* words = mask + row * mask_words;
    for (int32_t word = 0; word < mask_words; ++word) {
      uint32_t seen = 0;
      for (int32_t lane = 0; lane < rows; ++lane) seen |= words[lane * mask_words + word];
      bits_[word] = Bits{};
      if (seen == 0) continue;
      for (int32_t lane = 0; lane < rows; ++lane) {
        bits_[word][lane] = static_cast<int32_t>(words[lane * mask_words + word]);
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
