// Moving rows between tensors (any dtype, any order) and float32 scratch.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cstring>
#include <type_traits>

#include "plan.h"
#include "vector.h"

namespace blocksparse {

// Granules of plan rows, side by side: the rows or columns of a tile.
struct Granules {
  const int32_t* numbers;
  int32_t size;
  int32_t operator()(int32_t row) const { return numbers[row / size] * size + row % size; }
};

// One head of a [batch, time, heads * width] tensor, or the several that read one key head, one behind the other: row r
// of the plan is `width` numbers at row(r). The tensor may have fewer rows than the plan.
template <typename T>
struct HeadRows {
  T* data;
  int64_t stride;  // heads * width
  int32_t width;
  Order order;
  int64_t next;  // from a row of one head to the same of the next
  int32_t time;  // rows of the tensor

  T* row(int32_t plan_row) const {
    T* const first = data + tensor_row(plan_row) * stride;
    return plan_row < order.period ? first : first + plan_row / order.period / order.stride * next;
  }

  // The row of the tensor, whichever head's.
  int64_t tensor_row(int32_t plan_row) const {
    // Most rows: in one class, of one head. Divisions for every granule that is gathered take some per cent.
    if (plan_row < order.period) return int64_t(plan_row) * order.stride;
    return int64_t(plan_row % order.period) * order.stride + plan_row / order.period % order.stride;
  }

  // How many of `count` plan rows from `plan_row` on, all of one residue class, the tensor has: the first ones.
  int32_t there(int32_t plan_row, int32_t count) const {
    const int64_t first = tensor_row(plan_row);
    if (first + int64_t(count - 1) * order.stride < time) return count;
    return first >= time ? 0 : (time - first - 1) / order.stride + 1;
  }
};

// Head `head` of batch row `batch` of a [batch, time, heads * width] tensor, and those behind it.
template <typename T>
HeadRows<T> head_rows(T* tensor, int64_t batch, int32_t head, int32_t heads, int32_t time, int32_t width, Order order) {
  const int64_t stride = int64_t(heads) * width;
  return {tensor + batch * time * stride + int64_t(head) * width, stride, width, order, width, time};
}

// Numbers [batch, time] as the rows of a head; null where there are none.
inline HeadRows<const int32_t> number_rows(const int32_t* numbers, int64_t batch, int32_t time, Order order) {
  return {numbers == nullptr ? nullptr : numbers + batch * time, 1, 1, order, 0, time};
}

// Faster than a call of memcpy for a row's 256 bytes.
inline void copy_row(const float* from, int32_t width, float* to) {
  int32_t i = 0;
  for (; i + kLanes <= width; i += kLanes) store(to + i, load(from + i));
  for (; i < width; ++i) to[i] = from[i];
}

template <typename T>
inline void read_row(const T* from, int32_t width, float* to) {
  if constexpr (std::is_same_v<T, float>) {
    copy_row(from, width, to);
  } else {
    using Row = Eigen::Map<const Eigen::Array<T, -1, 1>>;
    Eigen::Map<Eigen::ArrayXf>(to, width) = Row(from, width).template cast<float>();
  }
}

template <typename T>
inline void write_row(const float* from, int32_t width, T* to) {
  if constexpr (std::is_same_v<T, float>) {
    copy_row(from, width, to);
  } else {
    Eigen::Map<Eigen::Array<T, -1, 1>>(to, width) = Eigen::Map<const Eigen::ArrayXf>(from, width).template cast<T>();
  }
}

// Adds in float32 to a row that is there, or to zeros.
template <typename T>
inline void put_row(const float* from, int32_t width, T* to, bool onto) {
  if (!onto) return write_row(from, width, to);
  Eigen::Map<Eigen::Array<T, -1, 1>> row(to, width);
  row = (row.template cast<float>() + Eigen::Map<const Eigen::ArrayXf>(from, width)).template cast<T>();
}

template <typename T>
inline float dot(const T* a, const T* b, int32_t width) {
  using Row = Eigen::Map<const Eigen::Array<T, -1, 1>>;
  return (Row(a, width).template cast<float>() * Row(b, width).template cast<float>()).sum();
}

// Calls visit(row, pointer to it) for plan rows begin .. end, as far as they are there.
template <typename T, typename Visit>
inline void for_plan_rows(const HeadRows<T>& tensor, int32_t begin, int32_t end, const Visit& visit) {
  const int32_t period = tensor.order.period;
  for (int32_t start = begin; start < end;) {
    const int32_t stop = std::min(end, (start / period + 1) * period);
    T* at = tensor.row(start);
    for (int32_t row = start, last = start + tensor.there(start, stop - start); row < last; ++row) {
      visit(row, at);
      at += tensor.order.stride * tensor.stride;
    }
    start = stop;
  }
}

struct Nothing {
  void operator()(int32_t) const {}
};

// Calls visit(i, pointer to the i-th row) for rows begin .. end of a tile, and missing(i) for those that are not there.
// A granule lies in one residue class.
template <typename T, typename Visit, typename Missing = Nothing>
inline void for_rows(const HeadRows<T>& tensor, Granules granules, int32_t begin, int32_t end, const Visit& visit,
                     const Missing& missing = {}) {
  for (int32_t i = begin; i < end;) {
    const int32_t stop = std::min(end, (i / granules.size + 1) * granules.size);
    T* at = tensor.row(granules(i));
    for (const int32_t last = i + tensor.there(granules(i), stop - i); i < last; ++i) {
      visit(i, at);
      at += tensor.order.stride * tensor.stride;
    }
    for (; i < stop; ++i) missing(i);
  }
}

// to[i - begin] = row i, for rows begin .. end of a tile; zeros for those that are not there.
template <typename T>
void read_rows(const HeadRows<const T>& from, Granules granules, int32_t begin, int32_t end, float* to,
               int64_t to_stride) {
  for_rows(
      from, granules, begin, end,
      [&](int32_t i, const T* row) { read_row(row, from.width, to + (i - begin) * to_stride); },
      [&](int32_t i) { std::fill_n(to + (i - begin) * to_stride, from.width, 0.0f); });
}

// onto: as in put_row.
template <typename T>
void write_rows(const float* from, int64_t from_stride, Granules granules, int32_t begin, int32_t end,
                const HeadRows<T>& to, bool onto = false) {
  for_rows(to, granules, begin, end,
           [&](int32_t i, T* row) { put_row(from + (i - begin) * from_stride, to.width, row, onto); });
}

// Which rows stand in a column tile's scratch: neighbouring row tiles often share one.
class Gathered {
 public:
  // head: where the rows' head starts, which tells it from all others.
  bool holds(const void* head, Granules granules, int32_t count) const {
    return head == head_ && std::equal(granules.numbers, granules.numbers + count / granules.size, numbers_);
  }
  void set(const void* head, Granules granules) { head_ = head, numbers_ = granules.numbers; }

 private:
  const void* head_ = nullptr;
  const int32_t* numbers_ = nullptr;
};

}  // namespace blocksparse
