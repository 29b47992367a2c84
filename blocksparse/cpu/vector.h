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

constexpr float kLog2e = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
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

// A NaN in `candidate` is dropped here: it reaches the result through exp2 instead, in its own lane.
inline Vec max(Vec value, Vec candidate) { return candidate > value ? candidate : value; }

inline bool any(Bits mask) {
  int32_t found = 0;
  for (int lane = 0; lane < kLanes; ++lane) found |= mask[lane];
  return found != 0;
}

// 2^x: exact 0 below 2^-126 (never a denormal), NaN for NaN; x <= 127. Relative error under 3e-7.
inline Vec exp2(Vec x) {
  const Vec magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, kept in the low bits
  const Vec rounded = x + magic;
  const Vec f = x - (rounded - magic);  // in [-1/2, 1/2]
  Vec p = broadcast(1.32647271e-03f);
  p = p * f + 9.67151265e-03f;
  p = p * f + 5.55073374e-02f;
  p = p * f + 2.40222421e-01f;
  p = p * f + 6.93146978e-01f;
  p = p * f + 1.0f;
  const Vec power = (Vec)(((Words)rounded << 23) + 0x3f800000);  // any number below -126 may overflow: no sign
  return x < broadcast(-126.0f) ? Vec{} : p * power;
}

}  // namespace blocksparse
