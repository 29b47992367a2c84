// float16 on Turing's tensor cores: a warp's 16 or 32 rows by tiles of 8 columns, mma.sync.m16n8k8.
//
// Of a tile's 16 rows lane l holds, in order, columns 2 * (l % 4) and the next of row l / 4, then of row l / 4 + 8.
// This is also how the instruction wants its first operand, so that probabilities go from one product into the next as
// they are.
#pragma once

constexpr int kTile = 16, kWarpRows = WARP_ROWS, kGroups = WARP_ROWS / 16, kPart = 4 * kGroups, kSlots = 2 * kGroups;

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

struct Operand {  // the first one of 16 deep products
  u32 at[kGroups][4];
};

// A warp's rows as first operands, kDim numbers each; kHeld: in registers throughout.
template <int kDim, int kPitch, bool kHeld>
struct Rows {
  const Stored* from;
  Operand held[kHeld ? kDim / 16 : 1];

  METHOD void set(const Stored* own) {
    from = own + lane() % 16 * kPitch + lane() / 16 * 8;
    if (!kHeld) return;
    UNROLL for (int d = 0; d < kDim; d += 16) held[d / 16] = load(d);
  }
  METHOD Operand load(int d) const {
    Operand a;
    UNROLL for (int g = 0; g < kGroups; ++g) load_matrices(a.at[g], from + 16 * g * kPitch + d);
    return a;
  }
};

// c += a b, 16 deep, of one tile; b0 and b1: its upper and lower 8 rows.
DEVICE void multiply(float (&c)[kPart], const Operand& a, u32 b0, u32 b1) {
  UNROLL for (int g = 0; g < kGroups; ++g) {
    multiply_16x8x8(c + 4 * g, a.at[g][0], a.at[g][1], b0);
    multiply_16x8x8(c + 4 * g, a.at[g][2], a.at[g][3], b1);
  }
}

// c = own other^T: other has kTiles * 8 rows.
template <int kTiles, int kDim, int kPitch, bool kHeld>
DEVICE void multiply_transposed(float (&c)[kTiles][kPart], const Rows<kDim, kPitch, kHeld>& own, const Stored* other) {
  UNROLL for (int t = 0; t < kTiles; ++t) UNROLL for (int i = 0; i < kPart; ++i) c[t][i] = 0.0f;
  other += (lane() % 8 + lane() / 16 * 8) * kPitch + lane() / 8 % 2 * 8;
  UNROLL for (int d = 0; d < kDim; d += 16) {
    const Operand a = kHeld ? own.held[kHeld ? d / 16 : 0] : own.load(d);
    UNROLL for (int t = 0; t < kTiles; t += 2) {
      u32 b[4];
      load_matrices(b, other + 8 * t * kPitch + d);
      multiply(c[t], a, b[0], b[1]);
      multiply(c[t + 1], a, b[2], b[3]);
    }
  }
}

// c += p other: p has a warp's rows by kInner * 8 columns, other has that many rows.
template <int kInner, int kTiles, int kPitch>
DEVICE void multiply_add(float (&c)[kTiles][kPart], const float (&p)[kInner][kPart], const Stored* other) {
  other += lane() % 16 * kPitch + lane() / 16 * 8;
  UNROLL for (int k = 0; k < kInner; k += 2) {
    Operand a;
    UNROLL for (int g = 0; g < kGroups; ++g) UNROLL for (int i = 0; i < 4; ++i) {
      const float* pair = p[k + i / 2] + 4 * g + i % 2 * 2;
      a.at[g][i] = pack(pair[0], pair[1]);
    }
    UNROLL for (int t = 0; t < kTiles; t += 2) {
      u32 b[4];
      load_transposed(b, other + 8 * k * kPitch + 8 * t);
      multiply(c[t], a, b[0], b[1]);
      multiply(c[t + 1], a, b[2], b[3]);
    }
  }
}
