// The kernels' device.h on a CPU: a block's threads are fibres that run one at a time, and what a warp does together is
// done lane by lane, as NVIDIA's PTX manual draws the fragments of each instruction.
#pragma once

#include <ucontext.h>
#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#define KERNEL extern "C" void
#define DEVICE static inline
#define METHOD inline
#define BOUNDS(threads, blocks)
#define SHARED_MEMORY(name) char* name = emulation::shared.data()
#define UNROLL

typedef uint32_t u32;
typedef uint16_t u16;
typedef int64_t i64;

struct alignas(16) Chunk {
  u32 word[4];
};

namespace emulation {

struct Barrier {
  int wanted, arrived = 0;
  unsigned passed = 0;
};

struct Warp {
  Barrier barrier{32};
  uint64_t slot[2][32][4];  // what each lane tells the others, in turns
};

struct Fibre {
  std::vector<char> stack = std::vector<char>(1 << 18);
  ucontext_t start;
  jmp_buf at;
  bool started = false, done = false;
};

inline std::vector<Fibre> fibres;
inline std::vector<Warp> warps;
inline std::vector<char> shared;
inline Barrier block_barrier{0};
inline bool any = false;
inline int current, blocks, block;
inline ucontext_t main_context;

inline void resume(int next) {
  current = next;
  Fibre& fibre = fibres[next];
  if (fibre.started) _longjmp(fibre.at, 1);
  fibre.started = true;
  setcontext(&fibre.start);
}

// Lets the next thread that is not done run; back in main when all are.
inline void leave() {
  for (size_t i = 1; i <= fibres.size(); ++i) {
    const int next = (current + i) % fibres.size();
    if (!fibres[next].done) resume(next);
  }
  setcontext(&main_context);
}

inline void yield() {
  if (_setjmp(fibres[current].at) == 0) leave();
}

inline void wait(Barrier& barrier) {
  const unsigned passed = barrier.passed;
  if (++barrier.arrived == barrier.wanted) {
    barrier.arrived = 0, ++barrier.passed;
    return;
  }
  while (barrier.passed == passed) yield();
}

// Every lane tells `mine` and may then read what all lanes told.
inline const uint64_t (*tell(const uint64_t (&mine)[4]))[4] {
  Warp& warp = warps[current / 32];
  auto& slots = warp.slot[warp.barrier.passed % 2];
  std::memcpy(slots[current % 32], mine, sizeof(mine));
  wait(warp.barrier);
  return slots;
}

inline void (*body)();

inline void run_thread() {
  body();
  fibres[current].done = true;
  leave();
}

inline void run_block(int index, int threads, int shared_bytes) {
  block = index;
  shared.assign(shared_bytes + 16, char(0xff));  // NaN in every dtype: nothing may be read before it is written
  fibres.resize(threads), warps.assign(threads / 32, Warp());
  block_barrier = Barrier{threads};
  for (Fibre& fibre : fibres) {
    fibre.started = fibre.done = false;
    getcontext(&fibre.start);
    fibre.start.uc_stack = {fibre.stack.data(), 0, fibre.stack.size()};
    makecontext(&fibre.start, run_thread, 0);
  }
  volatile bool back = false;
  getcontext(&main_context);
  if (back) return;
  back = true;
  resume(0);
}

inline float half(uint64_t bits, int index) {
  const u16 word = bits >> (16 * index);
  _Float16 value;
  std::memcpy(&value, &word, 2);
  return value;
}

}  // namespace emulation

DEVICE int thread_index() { return emulation::current; }
DEVICE int block_index() { return emulation::block; }
DEVICE int block_count() { return emulation::blocks; }
DEVICE int lane() { return emulation::current % 32; }
DEVICE int warp_index() { return emulation::current / 32; }
DEVICE void sync() { emulation::wait(emulation::block_barrier); }
DEVICE bool sync_or(bool mine) {
  emulation::any |= mine;
  sync();
  const bool result = emulation::any;
  sync();
  if (thread_index() == 0) emulation::any = false;
  sync();
  return result;
}
DEVICE u32 bits_of(float x) {
  u32 bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
DEVICE float float_of(u32 bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
DEVICE u32 shuffle_xor(u32 x, int mask) { return emulation::tell({x})[lane() ^ mask][0]; }
DEVICE float shuffle_xor(float x, int mask) { return float_of(shuffle_xor(bits_of(x), mask)); }
DEVICE float shuffle(float x, int from) { return float_of(emulation::tell({bits_of(x)})[from][0]); }
DEVICE float larger(float a, float b) { return std::fmax(a, b); }
DEVICE float fused(float a, float b, float c) { return std::fma(a, b, c); }
DEVICE float power_of_two(float x) { return std::exp2(x); }
DEVICE float logarithm(float x) { return std::log2(x); }
DEVICE float infinity() { return HUGE_VALF; }
DEVICE float half_to_float(u16 x) { return emulation::half(x, 0); }
DEVICE u32 pack(float low, float high) {
  const _Float16 pair[2] = {_Float16(low), _Float16(high)};
  u32 bits;
  std::memcpy(&bits, pair, 4);
  return bits;
}

DEVICE void load_matrices(u32 (&out)[4], const u16* row) {
  const auto all = emulation::tell({reinterpret_cast<uint64_t>(row)});
  for (int i = 0; i < 4; ++i) {
    std::memcpy(&out[i], reinterpret_cast<const u16*>(all[8 * i + lane() / 4][0]) + 2 * (lane() % 4), 4);
  }
}
DEVICE void load_transposed(u32 (&out)[4], const u16* row) {
  const auto all = emulation::tell({reinterpret_cast<uint64_t>(row)});
  for (int i = 0; i < 4; ++i) {
    out[i] = 0;
    for (int e = 0; e < 2; ++e) {
      const u16* from = reinterpret_cast<const u16*>(all[8 * i + 2 * (lane() % 4) + e][0]);
      out[i] |= u32(from[lane() / 4]) << (16 * e);
    }
  }
}

DEVICE void multiply_16x8x8(float* c, u32 a0, u32 a1, u32 b) {
  const auto all = emulation::tell({a0, a1, b});
  for (int i = 0; i < 4; ++i) {
    const int row = lane() / 4, column = 2 * (lane() % 4) + i % 2;
    for (int k = 0; k < 8; ++k) {
      c[i] += emulation::half(all[4 * row + k / 2][i / 2], k % 2) * emulation::half(all[4 * column + k / 2][2], k % 2);
    }
  }
}

// A group's lane l has number l % 4, and 4 more from lane 16 on: it holds row or column of that number of an operand.
static inline void multiply_8x8x4(float (&c)[8], u32 a0, u32 a1, u32 b0, u32 b1, bool b_columns) {
  const auto all = emulation::tell({a0 | uint64_t(a1) << 32, b0 | uint64_t(b1) << 32});
  const int group = lane() / 4 % 4 * 4;
  const auto holder = [&](int number) { return all[group + number % 4 + number / 4 * 16]; };
  for (int i = 0; i < 8; ++i) {
    const int row = (lane() & 1) + (i & 2) + lane() / 16 * 4, column = (i & 4) + (lane() & 2) + (i & 1);
    for (int k = 0; k < 4; ++k) {
      const float b = b_columns ? emulation::half(holder(column)[1], k)
                                : emulation::half(holder(k + column / 4 * 4)[1], column % 4);
      c[i] += emulation::half(holder(row)[0], k) * b;
    }
  }
}
DEVICE void multiply_8x8x4_columns(float (&c)[8], u32 a0, u32 a1, u32 b0, u32 b1) {
  multiply_8x8x4(c, a0, a1, b0, b1, true);
}
DEVICE void multiply_8x8x4_rows(float (&c)[8], u32 a0, u32 a1, u32 b0, u32 b1) {
  multiply_8x8x4(c, a0, a1, b0, b1, false);
}
