// Attention over two sets of keys out of that over each: out = sum of w_p out_p, w_p = exp(lse_p - lse), with
// lse = log sum of exp(lse_p).
#pragma once

#include <cmath>

#include "vector.h"

namespace blocksparse {

struct JoinWeights {
  float before, own;
};

// lse: of the row's own keys, and then the joint one. A row without keys has -inf and weight 0. NaN makes all of it
// NaN.
inline JoinWeights join(float before, float* lse) {
  if (before == -kInfinity) return {0.0f, 1.0f};
  const float top = *lse > before ? *lse : before;
  const float a = std::exp(before - top), b = std::exp(*lse - top), sum = a + b;
  *lse = top + std::log(sum);
  return {a / sum, b / sum};
}

}  // namespace blocksparse
