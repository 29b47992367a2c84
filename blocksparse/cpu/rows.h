// Moving rows between tensors (any dtype, any order) and float32 scratch.
#pragma once

#include <Eigen/Core>
#include <cstdlib>
#include <memory>
#include <new>

#include "plan.h"
#include "product.h"

namespace blocksparse {

inline int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// Float32 scratch of one thread, on a cache line of its own.
class Scratch {
 public:
  explicit Scratch(int64_t size) : data_(static_cast<float*>(std::aligned_alloc(64, round_up(size, 16) * 4))) {
    if (!data_) throw std::bad_alloc();
    std::memset(data_.get(), 0, round_up(size, 16) * 4);
  }
  float* take(int64_t size) {
    float* part = data_.get() + used_;
    used_ += round_up(size, 16);
    return part;
  }

 private:
  struct Free {
    void operator()(float* data) const { std::free(data); }
  };
  std::unique_ptr<float[], Free> data_;
  int64_t used_ = 0;
};

// One head of a [batch, time, heads * width] tensor: row r of the plan is `width` numbers at row(r).
template <typename T>
struct HeadRows {
  T* data;
  int64_t stride;  // heads * width
  int32_t width;
  Order order;
  T* row(int32_t plan_row) const { return data + order(plan_row) * stride; }
};

// Head `head` of batch row `batch` of a [batch, time, heads * width] tensor.
template <typename T>
HeadRows<T> head_rows(T* tensor, int64_t batch, int32_t head, int32_t heads, int32_t time, int32_t width, Order order) {
  const int64_t stride = int64_t(heads) * width;
  return {tensor + batch * time * stride + int64_t(head) * width, stride, width, order};
}

template <typename T>
inline void read_row(const T* from, int32_t width, float* to) {
  if constexpr (std::is_same_v<T, float>) {
    std::memcpy(to, from, width * sizeof(float));
  } else {
    Eigen::Map<Eigen::ArrayXf>(to, width) = Eigen::Map<const Eigen::Array<T, -1, 1>>(from, width).template cast<float>();
  }
}

template <typename T>
inline void write_row(const float* from, int32_t width, T* to) {
  if constexpr (std::is_same_v<T, float>) {
    std::memcpy(to, from, width * sizeof(float));
  } else {
    Eigen::Map<Eigen::Array<T, -1, 1>>(to, width) = Eigen::Map<const Eigen::ArrayXf>(from, width).template cast<T>();
  }
}

// Rows first .. first + count of the plan, into to[count][to_stride].
template <typename T>
void read_rows(const HeadRows<const T>& from, int32_t first, int32_t count, float* to, int64_t to_stride) {
  for (int32_t row = 0; row < count; ++row) read_row(from.row(first + row), from.width, to + row * to_stride);
}

// The rows of a column tile, granule by granule.
template <typename T>
void gather(const HeadRows<const T>& from, const int32_t* granules, int32_t count, int32_t granule, float* to,
            int64_t to_stride) {
  for (int32_t i = 0; i < count; ++i) {
    read_rows(from, granules[i] * granule, granule, to + int64_t(i) * granule * to_stride, to_stride);
  }
}

// to[column][kStrip] = from[row][column] for kStrip rows; from_stride and columns are multiples of kLanes.
inline void transpose_in(const float* from, int64_t from_stride, int32_t columns, float* to) {
  for (int strip = 0; strip < kStrip; strip += kLanes) {
    for (int32_t column = 0; column < columns; column += kLanes) {
      Vec square[kLanes];
      for (int i = 0; i < kLanes; ++i) square[i] = load(from + (strip + i) * from_stride + column);
      transpose(square);
      for (int i = 0; i < kLanes; ++i) store(to + int64_t(column + i) * kStrip + strip, square[i]);
    }
  }
}

// to[row][column] = from[column][row] * scale[row]: the inverse of transpose_in, with a factor for each row.
inline void transpose_out(const float* from, int32_t columns, const Vec* scale, float* to, int64_t to_stride) {
  for (int strip = 0; strip < kStrip; strip += kLanes) {
    for (int32_t column = 0; column < columns; column += kLanes) {
      Vec square[kLanes];
      for (int i = 0; i < kLanes; ++i) square[i] = load(from + int64_t(column + i) * kStrip + strip) * scale[strip / kLanes];
      transpose(square);
      for (int i = 0; i < kLanes; ++i) store(to + (strip + i) * to_stride + column, square[i]);
    }
  }
}

}  // namespace blocksparse
