// What a tile sees of tensors that are shorter than their plan: rows past a tensor's end are no queries and no keys.
#pragma once

#include <algorithm>

#include "rows.h"

namespace blocksparse {

class Bounds {
 public:
  // whole: the tensors are as long as the plan, so that every mask holds as it stands.
  explicit Bounds(bool whole) : whole_(whole) {}

  // No row of the granules is there.
  template <typename T>
  bool misses(const HeadRows<T>& tensor, Granules granules, int32_t count) const {
    if (whole_) return false;
    for (int32_t i = 0; i < count; i += granules.size) {
      if (tensor.there(granules(i), granules.size) > 0) return false;
    }
    return true;
  }

  // The mask of a tile of `count` rows, null where all of them see every column, without what is not there. Zeros stand
  // for such rows in a tile's scratch, and the exponential of their scores may be anything.
  template <typename R, typename C>
  const uint32_t* mask(const TilePlan& tiles, const uint32_t* own, const HeadRows<R>& row_tensor, Granules rows,
                       int32_t count, const HeadRows<C>& column_tensor, Granules columns) {
    if (whole_) return own;
    const int32_t words = tiles.mask_words();
    uint32_t there[kMostRows / 32] = {};
    bool all = true;
    for (int32_t i = 0; i < tiles.column_tile; i += columns.size) {
      const int32_t end = i + column_tensor.there(columns(i), columns.size);
      all = all && end == i + columns.size;
      for (int32_t column = i; column < end; ++column) there[column / 32] |= 1u << column % 32;
    }
    for (int32_t i = 0; i < count; i += rows.size) {
      const int32_t size = std::min(rows.size, count - i), found = row_tensor.there(rows(i), size);
      all = all && found == size;
      for (int32_t row = i; row < i + size; ++row) {
        for (int32_t word = 0; word < words; ++word) {
          const uint32_t shown = own == nullptr ? ~0u : own[row * words + word];
          bits_[row * words + word] = row < i + found ? shown & there[word] : 0;
        }
      }
    }
    return all ? own : bits_;
  }

 private:
  const bool whole_;
  uint32_t bits_[kMostRows * kMostRows / 32];
};

}  // namespace blocksparse
