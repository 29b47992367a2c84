// One register of float32 lanes, in GCC's vector extension: the same source for AVX-512, AVX2 and SSE.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

namespace blocksparse {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

constexpr float kLog2e = 1.4426950408889634f;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t Bits __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));

inline Vec load(const float* from) {
  Vec value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

inline void store(float* to, Vec value) { std::memcpy(to, &value, sizeof value); }

inline Vec broadcast(float value) { return value - Vec{}; }  // GCC drops the - 0; + 0 it would compute, as -0 + 0 is +0

// A NaN in `candidate` is dropped here: it reaches the result through exp instead, in its own lane.
inline Vec max(Vec value, Vec candidate) { return candidate > value ? candidate : value; }

inline bool any(Bits mask) {
  int32_t found = 0;
  for (int lane = 0; lane < kLanes; ++lane) found |= mask[lane];
  return found != 0;
}

// e^x as 2^(x log2 e): exact 0 below 2^-126 (never a denormal), NaN for NaN; x <= 88. Relative error at most
// (1 + |x| / 8) 2^-23, or five times that on a processor that rounds x log2 e before it adds.
inline Vec exp(Vec x) {
  const Vec magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, kept in the low bits
  const Vec rounded = x * kLog2e + magic;
  const Vec f = x * kLog2e - (rounded - magic);  // in [-1/2, 1/2]
  Vec p = broadcast(1.5353362e-04f);             // 2^f to 2e-9
  p = p * f + 1.3398875e-03f;
  p = p * f + 9.61843692e-03f;
  p = p * f + 5.55033237e-02f;
  p = p * f + 2.40226477e-01f;
  p = p * f + 6.93147182e-01f;
  p = p * f + 1.0f;
  const Vec power = (Vec)(((Words)rounded << 23) + 0x3f800000);  // any number below -126 may overflow: no sign
  return x < broadcast(-126.0f / kLog2e) ? Vec{} : p * power;
}

}  // namespace blocksparse
