// float16 on Volta's tensor cores: a warp's 32 rows by tiles of 8 columns, mma.sync.m8n8k4.
//
// The instruction multiplies 8 x 4 by 4 x 8 in each of four groups of eight lanes (0-3 and 16-19, 4-7 and 20-23, ...).
// Here the groups stand one below the other: all have the same second operand, which shared memory then reads once for
// all.
#pragma once

constexpr int kTile = 16, kWarpRows = 32, kPart = 8, kSlots = 2;

// Of a tile a lane holds in element i row row_of(slot_of(i)), column column_of(i).
DEVICE constexpr int slot_of(int i) { return i / 2 % 2; }
DEVICE int group_row() { return lane() / 4 % 4 * 8 + lane() / 16 * 4; }
DEVICE int row_of(int slot) { return group_row() + (lane() & 1) + 2 * slot; }
DEVICE int column_of(int i) { return (i & 4) + (lane() & 2) + (i & 1); }
// multiply_add reads eight numbers of a row at once, four for each of two tiles: columns of two tiles are interleaved.
DEVICE int dim_of(int tile, int i) { return tile / 2 * 16 + i / 4 * 8 + tile % 2 * 4 + (lane() & 2) + (i & 1); }
DEVICE float row_sum(float x) { return x + shuffle_xor(x, 2); }
DEVICE float row_max(float x) { return larger(x, shuffle_xor(x, 2)); }

// A warp's rows as first operands, kDim numbers each; kHeld: in registers throughout.
template <int kDim, int kPitch, bool kHeld>
struct Rows {
  const Stored* from;
  Chunk held[kHeld ? kDim / 8 : 1];

  METHOD void set(const Stored* own) {
    from = own + (group_row() + (lane() & 3)) * kPitch;
    if (!kHeld) return;
    UNROLL for (int d = 0; d < kDim; d += 8) held[d / 8] = take(from + d);
  }
};

// c = own other^T: other has kTiles * 8 rows.
template <int kTiles, int kDim, int kPitch, bool kHeld>
DEVICE void multiply_transposed(float (&c)[kTiles][kPart], const Rows<kDim, kPitch, kHeld>& own, const Stored* other) {
  UNROLL for (int t = 0; t < kTiles; ++t) UNROLL for (int i = 0; i < kPart; ++i) c[t][i] = 0.0f;
  other += (lane() / 16 * 4 + (lane() & 3)) * kPitch;
  UNROLL for (int d = 0; d < kDim; d += 8) {
    const Chunk a = kHeld ? own.held[kHeld ? d / 8 : 0] : take(own.from + d);
    UNROLL for (int t = 0; t < kTiles; ++t) {
      const Chunk b = take(other + 8 * t * kPitch + d);
      multiply_8x8x4_columns(c[t], a.word[0], a.word[1], b.word[0], b.word[1]);
      multiply_8x8x4_columns(c[t], a.word[2], a.word[3], b.word[2], b.word[3]);
    }
  }
}

// First operands for two products out of a tile: a lane wants all columns of row lane % 4, and holds half the columns
// of two rows, whose other halves lane ^ 2 holds. Four columns a product.
DEVICE void as_operand(u32 (&a)[2][2], const float (&p)[kPart]) {
  const bool upper = lane() & 2;
  UNROLL for (int q = 0; q < 2; ++q) {
    const u32 first = pack(p[4 * q], p[4 * q + 1]), second = pack(p[4 * q + 2], p[4 * q + 3]);
    const u32 mine = upper ? second : first, theirs = shuffle_xor(upper ? first : second, 2);
    a[q][0] = upper ? theirs : mine;
    a[q][1] = upper ? mine : theirs;
  }
}

// c += p other: p has a warp's rows by kInner * 8 columns, other has that many rows.
template <int kInner, int kTiles, int kPitch>
DEVICE void multiply_add(float (&c)[kTiles][kPart], const float (&p)[kInner][kPart], const Stored* other) {
  other += (lane() & 3) * kPitch + lane() / 16 * 8;
  UNROLL for (int k = 0; k < kInner; ++k) {
    u32 a[2][2];
    as_operand(a, p[k]);
    UNROLL for (int q = 0; q < 2; ++q) UNROLL for (int t = 0; t < kTiles; t += 2) {
      const Chunk b = take(other + (8 * k + 4 * q) * kPitch + 8 * t);
      multiply_8x8x4_rows(c[t], a[q][0], a[q][1], b.word[0], b.word[1]);
      multiply_8x8x4_rows(c[t + 1], a[q][0], a[q][1], b.word[2], b.word[3]);
    }
  }
}
