// Block-sparse attention on the CPU: fused forward and backward over a tile plan. Mathematics only: no TensorFlow.
#pragma once

#include <cstdint>
#include <functional>

#include "plan.h"

namespace blocksparse {

// Runs body(begin, end) over a partition of 0 .. count, on at most `threads` threads.
struct Parallel {
  int threads;
  std::function<void(int64_t count, const std::function<void(int64_t, int64_t)>& body)> run;
};

struct Shape {
  int64_t batch;
  int32_t heads, head_dim, value_dim;
  float scale;
  int32_t query_time, key_time;  // rows of the tensors: at most the plan's; those past the end do not exist
};

// The tensors have every row of the plan.
inline bool fills(const Shape& shape, const Plan& plan) {
  return shape.query_time == plan.query_time && shape.key_time == plan.key_time;
}

template <typename T>
struct Inputs {
  const T *q, *k, *v;  // [batch, time, heads * head_dim], v with value_dim; k and v may have the plan's fewer key heads
  // Segment numbers [batch, query_time] and [batch, key_time], or null: a query sees only keys of its own number, and
  // none where that is negative.
  const int32_t *query_segments = nullptr, *key_segments = nullptr;
};

template <typename T>
struct Gradient {
  const T *out, *dout;      // [batch, query_time, heads * value_dim]
  const float *lse, *dlse;  // [batch, heads, query_time]
  T *dq, *dk, *dv;
};

// out = softmax(scale * q k^T) v over the visible keys, lse = log sum exp(scale * q k^T); 0 and -inf for a row that
// sees no key. onto: out and lse hold those of a pass over other keys, and get those over the keys of both.
template <typename T>
void attention_forward(const Shape& shape, const Plan& plan, const Inputs<T>& in, T* out, float* lse, bool onto,
                       const Parallel& parallel);

// Float32 numbers of workspace that attention_backward needs.
int64_t backward_workspace(const Shape& shape, const Plan& plan);

// The pass's share of the gradients. Where several passes were joined, out, lse and their gradients are the joint ones,
// which make each pass's share the ordinary gradient. onto: dq, dk and dv hold other passes' shares and are added to.
template <typename T>
void attention_backward(const Shape& shape, const Plan& plan, const Inputs<T>& in, const Gradient<T>& gradient,
                        bool onto, float* workspace, const Parallel& parallel);

}  // namespace blocksparse
