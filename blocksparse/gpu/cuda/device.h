// What the kernels take from the machine, one small function each. The tests put a header of this name before it, which
// does the same on a CPU: nothing outside this file may name a register, an instruction or a built-in variable.
#pragma once

#define KERNEL extern "C" __global__ void
#define DEVICE static __device__ __forceinline__
#define METHOD __device__ __forceinline__
#define BOUNDS(threads, blocks) __launch_bounds__(threads, blocks)
#define SHARED_MEMORY(name) extern __shared__ __align__(16) char name[]
#define UNROLL _Pragma("unroll")

typedef unsigned int u32;
typedef unsigned short u16;
typedef long long i64;

struct alignas(16) Chunk {  // what one load or store moves
  u32 word[4];
};

DEVICE int thread_index() { return threadIdx.x; }
DEVICE int block_index() { return blockIdx.x; }
DEVICE int block_count() { return gridDim.x; }
DEVICE int lane() { return threadIdx.x & 31; }
DEVICE int warp_index() { return threadIdx.x >> 5; }
DEVICE void sync() { __syncthreads(); }
DEVICE bool sync_or(bool mine) { return __syncthreads_or(mine); }
DEVICE float shuffle_xor(float x, int mask) { return __shfl_xor_sync(~0u, x, mask); }
DEVICE u32 shuffle_xor(u32 x, int mask) { return __shfl_xor_sync(~0u, x, mask); }
DEVICE float shuffle(float x, int from) { return __shfl_sync(~0u, x, from); }
DEVICE float larger(float a, float b) { return fmaxf(a, b); }  // the other one where one is NaN
DEVICE float fused(float a, float b, float c) { return fmaf(a, b, c); }
DEVICE float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
DEVICE float logarithm(float x) { return log2f(x); }
DEVICE u32 bits_of(float x) { return __float_as_uint(x); }
DEVICE float float_of(u32 x) { return __uint_as_float(x); }
DEVICE float infinity() { return __uint_as_float(0x7f800000u); }
DEVICE float half_to_float(u16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
  return y;
}
DEVICE u32 pack(float low, float high) {  // as two halves
  u32 y;
  asm("{.reg .b16 l, h; cvt.rn.f16.f32 l, %1; cvt.rn.f16.f32 h, %2; mov.b32 %0, {l, h};}"
      : "=r"(y)
      : "f"(low), "f"(high));
  return y;
}

// Four 8 x 8 matrices of halves: lane l says where row l % 8 of matrix l / 8 starts, and gets of each matrix the halves
// 2 * (l % 4) and the next one of row l / 4; transposed: of column l / 4.
DEVICE void load_matrices(u32 (&out)[4], const u16* row) {
  const u32 address = __cvta_generic_to_shared(row);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address)
               : "memory");
}
DEVICE void load_transposed(u32 (&out)[4], const u16* row) {
  const u32 address = __cvta_generic_to_shared(row);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address)
               : "memory");
}

// c += a b of a whole warp: 16 x 8 by 8 x 8 (compute capability 7.5).
DEVICE void multiply_16x8x8(float* c, u32 a0, u32 a1, u32 b) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a0), "r"(a1), "r"(b));
}

// c += a b of each of a warp's four groups of eight lanes: 8 x 4 by 4 x 8 (compute capability 7.0). COLUMN: a lane
// holds four halves of a column of b, else of a row.
#define MULTIPLY_8X8X4(NAME, ORDER)                                                                               \
  DEVICE void NAME(float (&c)[8], u32 a0, u32 a1, u32 b0, u32 b1) {                                               \
    asm volatile("mma.sync.aligned.m8n8k4.row." ORDER                                                             \
                 ".f32.f16.f16.f32 {%0,%1,%2,%3,%4,%5,%6,%7}, {%8,%9}, {%10,%11}, {%0,%1,%2,%3,%4,%5,%6,%7};"     \
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]) \
                 : "r"(a0), "r"(a1), "r"(b0), "r"(b1));                                                           \
  }
MULTIPLY_8X8X4(multiply_8x8x4_columns, "col")
MULTIPLY_8X8X4(multiply_8x8x4_rows, "row")
#undef MULTIPLY_8X8X4
