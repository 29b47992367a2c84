// Rows wanted soon, fetched a few at a time while the core computes. From memory a row takes about 150 ns, a core waits
// for no more than some 24 lines at once, and on its own it looks only a few rows ahead.
#pragma once

#include <vector>

#include "rows.h"

namespace blocksparse {

class Ahead {
 public:
  void clear() { runs_.clear(), rows_ = done_ = row_ = run_ = end_ = 0; }

  // The first `count` rows of a tile, to be read or written. (Prefetching for a write gained nothing when measured.)
  template <typename T>
  void add(const HeadRows<T>& tensor, Granules granules, int32_t count) {
    for (int32_t i = 0; i < count; i += granules.size) {
      const T* first = tensor.row(granules(i));
      const int64_t stride = tensor.order.stride * tensor.stride * sizeof(T);
      const int32_t rows = tensor.there(granules(i), granules.size);
      if (rows == 0) continue;
      runs_.push_back({reinterpret_cast<const char*>(first), stride, int32_t(tensor.width * sizeof(T)), rows});
      rows_ += rows;
    }
  }

  // Spreads the rows of the first `part` of `parts` equal parts, as far as they are not fetched yet, over the next
  // `steps` calls of step.
  void aim(int32_t part, int32_t parts, int32_t steps) {
    end_ = int64_t(rows_) * part / parts;
    pace_ = (end_ - done_ + steps - 1) / steps;
  }

  void step() {
    for (const int32_t end = std::min(done_ + pace_, end_); done_ < end; ++done_) {
      if (row_ == runs_[run_].rows) ++run_, row_ = 0;
      const Run& run = runs_[run_];
      const char* row = run.data + row_++ * run.stride;
      for (int32_t at = 0; at < run.bytes; at += kLine) __builtin_prefetch(row + at, 0, 2);
    }
    asm volatile("");  // without it GCC takes this for a function without effect and drops the calls
  }

 private:
  static constexpr int32_t kLine = 64;
  struct Run {  // rows of a granule
    const char* data;
    int64_t stride;
    int32_t bytes, rows;
  };
  std::vector<Run> runs_;
  int32_t rows_ = 0, done_ = 0, run_ = 0, row_ = 0, end_ = 0, pace_ = 0;
};

}  // namespace blocksparse
