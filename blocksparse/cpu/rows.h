// Moving rows between tensors (any dtype, any order) and float32 scratch.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cstring>
#include <type_traits>

#include "plan.h"

namespace blocksparse {

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
    using Row = Eigen::Map<const Eigen::Array<T, -1, 1>>;
    Eigen::Map<Eigen::ArrayXf>(to, width) = Row(from, width).template cast<float>();
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

template <typename T>
inline float dot(const T* a, const T* b, int32_t width) {
  using Row = Eigen::Map<const Eigen::Array<T, -1, 1>>;
  return (Row(a, width).template cast<float>() * Row(b, width).template cast<float>()).sum();
}

// Granules of plan rows, side by side: the rows or columns of a tile.
struct Granules {
  const int32_t* numbers;
  int32_t size;
  int32_t operator()(int32_t row) const { return numbers[row / size] * size + row % size; }
};

// Calls visit(row, pointer to it) for plan rows begin .. end.
template <typename T, typename Visit>
inline void for_plan_rows(const HeadRows<T>& tensor, int32_t begin, int32_t end, const Visit& visit) {
  for (int32_t row = begin; row < end;) {
    T* at = tensor.row(row);
    const int32_t period = tensor.order.period;
    for (const int32_t stop = std::min(end, (row / period + 1) * period); row < stop; ++row) {
      visit(row, at);
      at += tensor.order.stride * tensor.stride;
    }
  }
}

// Calls visit(i, pointer to the i-th row) for rows begin .. end of a tile.
template <typename T, typename Visit>
inline void for_rows(const HeadRows<T>& tensor, Granules granules, int32_t begin, int32_t end, const Visit& visit) {
  for (int32_t i = begin; i < end;) {
    const int32_t stop = std::min(end, (i / granules.size + 1) * granules.size), first = granules(i) - i;
    for_plan_rows(tensor, first + i, first + stop, [&](int32_t row, T* at) { visit(row - first, at); });
    i = stop;
  }
}

// to[i - begin] = row i, for rows begin .. end of a tile.
template <typename T>
void read_rows(const HeadRows<const T>& from, Granules granules, int32_t begin, int32_t end, float* to,
               int64_t to_stride) {
  for_rows(from, granules, begin, end,
           [&](int32_t i, const T* row) { read_row(row, from.width, to + (i - begin) * to_stride); });
}

template <typename T>
void write_rows(const float* from, int64_t from_stride, Granules granules, int32_t begin, int32_t end,
                const HeadRows<T>& to) {
  for_rows(to, granules, begin, end,
           [&](int32_t i, T* row) { write_row(from + (i - begin) * from_stride, to.width, row); });
}

}  // namespace blocksparse
