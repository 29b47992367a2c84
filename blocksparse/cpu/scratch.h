// Float32 scratch of one thread.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <new>

#include "product.h"

namespace blocksparse {

inline int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// A row's width in scratch: whole registers, and whole blocks of a product's rows.
inline int32_t padded(int32_t width) { return round_up(width, std::max(kLanes, kRows)); }

class Scratch {
 public:
  struct Part {
    float** data;
    int64_t size;
  };

  // Zeroed arrays, each on cache lines of its own, in one allocation.
  explicit Scratch(std::initializer_list<Part> parts) {
    int64_t total = 0;
    for (const Part& part : parts) total += round_up(part.size, kLine);
    data_.reset(static_cast<float*>(std::aligned_alloc(kLine * sizeof(float), total * sizeof(float))));
    if (!data_) throw std::bad_alloc();
    std::memset(data_.get(), 0, total * sizeof(float));
    float* next = data_.get();
    for (const Part& part : parts) {
      *part.data = next;
      next += round_up(part.size, kLine);
    }
  }

 private:
  static constexpr int64_t kLine = 16;
  struct Free {
    void operator()(float* data) const { std::free(data); }
  };
  std::unique_ptr<float[], Free> data_;
};

}  // namespace blocksparse
