// float32, and bfloat16 computed in it, on the FMA units: a warp's 16 rows by tiles of 8 columns.
//
// Of a tile lane l holds, in order, columns 2 * (l % 4) and the next of row l / 4, then of row l / 4 + 8.
#pragma once

typedef float Stored;  // in shared memory
constexpr int kTile = 8, kWarpRows = 16, kPart = 4, kSlots = 2;

#if DTYPE_BF16
typedef u16 Element;  // in global memory
DEVICE float value_of(Element x) { return float_of(u32(x) << 16); }
DEVICE u32 rounded(float x) {  // to nearest even; a NaN stays one
  const u32 bits = bits_of(x);
  return x != x ? 0x7fc0u : (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
}
#else
typedef float Element;
#endif
DEVICE float value_of(Stored x) { return x; }

DEVICE bool finite(Stored x) { return (bits_of(x) & 0x7f800000u) != 0x7f800000u; }

// One chunk of global memory into shared memory, negated or not, and back.
DEVICE void put(Stored* to, const Chunk& chunk, bool negative) {
  const float sign = negative ? -1.0f : 1.0f;
#if DTYPE_BF16
  UNROLL for (int i = 0; i < 4; ++i) {
    to[2 * i] = sign * float_of(chunk.word[i] << 16);
    to[2 * i + 1] = sign * float_of(chunk.word[i] & 0xffff0000u);
  }
#else
  Chunk signed_chunk;
  UNROLL for (int i = 0; i < 4; ++i) signed_chunk.word[i] = bits_of(sign * float_of(chunk.word[i]));
  *reinterpret_cast<Chunk*>(to) = signed_chunk;
#endif
}
DEVICE Chunk take(const Stored* from) {
#if DTYPE_BF16
  Chunk chunk;
  UNROLL for (int i = 0; i < 4; ++i) chunk.word[i] = rounded(from[2 * i]) | rounded(from[2 * i + 1]) << 16;
  return chunk;
#else
  return *reinterpret_cast<const Chunk*>(from);
#endif
}
DEVICE void put_pair(Stored* to, float first, float second) { to[0] = first, to[1] = second; }

DEVICE constexpr int slot_of(int i) { return i / 2; }
DEVICE int row_of(int slot) { return lane() / 4 + 8 * slot; }
DEVICE int column_of(int i) { return 2 * (lane() & 3) + (i & 1); }
DEVICE int dim_of(int tile, int i) { return 8 * tile + column_of(i); }
DEVICE float row_sum(float x) {
  x += shuffle_xor(x, 1);
  return x + shuffle_xor(x, 2);
}
DEVICE float row_max(float x) {
  x = larger(x, shuffle_xor(x, 1));
  return larger(x, shuffle_xor(x, 2));
}

struct alignas(16) Four {
  float at[4];
};

// A warp's rows as first operands, kDim numbers each: they stay in shared memory.
template <int kDim, int kPitch, bool kHeld>
struct Rows {
  const Stored* from;
  METHOD void set(const Stored* own) { from = own + row_of(0) * kPitch; }
};

// c = own other^T: other has kTiles * 8 rows.
template <int kTiles, int kDim, int kPitch, bool kHeld>
DEVICE void multiply_transposed(float (&c)[kTiles][kPart], const Rows<kDim, kPitch, kHeld>& own, const Stored* other) {
  UNROLL for (int t = 0; t < kTiles; ++t) UNROLL for (int i = 0; i < kPart; ++i) c[t][i] = 0.0f;
  other += column_of(0) * kPitch;
#pragma unroll 2
  for (int d = 0; d < kDim; d += 4) {
    Four a[2];
    UNROLL for (int s = 0; s < 2; ++s) a[s] = *reinterpret_cast<const Four*>(own.from + 8 * s * kPitch + d);
    UNROLL for (int t = 0; t < kTiles; ++t) {
      UNROLL for (int e = 0; e < 2; ++e) {
        const Four b = *reinterpret_cast<const Four*>(other + (8 * t + e) * kPitch + d);
        UNROLL for (int s = 0; s < 2; ++s) UNROLL for (int k = 0; k < 4; ++k) {
          c[t][2 * s + e] = fused(a[s].at[k], b.at[k], c[t][2 * s + e]);
        }
      }
    }
  }
}

// c += p other: p has a warp's rows by kInner * 8 columns, other has that many rows.
template <int kInner, int kTiles, int kPitch>
DEVICE void multiply_add(float (&c)[kTiles][kPart], const float (&p)[kInner][kPart], const Stored* other) {
  UNROLL for (int k = 0; k < 8 * kInner; ++k) {
    const int owner = (lane() & ~3) + k % 8 / 2;
    const float first = shuffle(p[k / 8][k % 2], owner), second = shuffle(p[k / 8][2 + k % 2], owner);
    const Stored* row = other + k * kPitch + column_of(0);
    UNROLL for (int t = 0; t < kTiles; ++t) UNROLL for (int e = 0; e < 2; ++e) {
      const float x = row[8 * t + e];
      c[t][e] = fused(first, x, c[t][e]);
      c[t][2 + e] = fused(second, x, c[t][2 + e]);
    }
  }
}
