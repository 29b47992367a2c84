#include "key_tile.h"

#include "transpose.h"

namespace blocksparse {

KeyTile::KeyTile(const TilePlan& tiles, int32_t head_dim, int32_t value_dim, float scale)
    : head_width(round_up(head_dim, kLanes)), value_width(round_up(value_dim, kLanes)), tiles_(tiles),
      head_dim_(head_dim), value_dim_(value_dim), scale_(scale),
      scratch_({{&staging, int64_t{kStrip} * std::max(head_width, value_width)},
                {&queries, int64_t{tiles.column_tile} * head_width},
                {&douts, int64_t{tiles.column_tile} * value_width},
                {&keys_, round_up(tiles.row_tile, kStrip) * head_width},
                {&keys_t_, round_up(tiles.row_tile, kStrip) * head_width},
                {&values_t_, round_up(tiles.row_tile, kStrip) * value_width},
                {&dkeys_, round_up(tiles.row_tile, kStrip) * head_width},
                {&dvalues_, round_up(tiles.row_tile, kStrip) * value_width},
                {&p_, int64_t{tiles.column_tile} * kStrip},
                {&ds_, int64_t{tiles.column_tile} * kStrip}}) {}

void KeyTile::start(int32_t count) {
  count_ = count;
  std::memset(dkeys_, 0, round_up(count, kStrip) * head_width * sizeof(float));
  std::memset(dvalues_, 0, round_up(count, kStrip) * value_width * sizeof(float));
}

void KeyTile::load_keys(int32_t row) {
  transpose_in(staging, head_width, broadcast(scale_ * kLog2e), keys_t_ + row * head_width);
  // A query that does not see a key has ds = 0 for it, and 0 * NaN would reach its dq: keys_ holds finite numbers only.
  // A query that does see it has ds = NaN.
  for (int32_t i = 0; i < kStrip * head_width; i += kLanes) {
    const Vec key = load(staging + i) * scale_;
    store(keys_ + row * head_width + i, key - key == Vec{} ? key : Vec{});
  }
}

void KeyTile::load_values(int32_t row) {
  transpose_in(staging, value_width, broadcast(1.0f), values_t_ + row * value_width);
}

void KeyTile::visit(const uint32_t* mask, Granules rows, const QueryRows& by_row) {
  for (int32_t row = 0; row < count_; row += kStrip) {
    if (mask == nullptr) {
      visit_strip<false>(StripMask(tiles_.column_tile), rows, row, by_row);
    } else {
      const int32_t words = tiles_.mask_words();
      visit_strip<true>(StripMask(mask + row * words, words, count_ - row), rows, row, by_row);
    }
  }
}

template <bool masked>
void KeyTile::visit_strip(const StripMask& seen, Granules rows, int32_t row, const QueryRows& by_row) {
  const int32_t begin = seen.begin, end = seen.end, size = end - begin;
  const float *q = queries + begin * head_width, *dout = douts + begin * value_width;
  float *p = p_ + begin * kStrip, *ds = ds_ + begin * kStrip;
  product<kStripVectors, false>({q, head_width, 1}, keys_t_ + row * head_width, kStrip, size, head_dim_, p, kStrip);
  product<kStripVectors, false>({dout, value_width, 1}, values_t_ + row * value_width, kStrip, size, value_dim_, ds,
                                kStrip);
  const int32_t keys = std::min(kStrip, count_ - row);  // what lies past the tile is no key
  for (int32_t query = begin; query < end; query += kRows) {  // eight rows of a granule are neighbours in plan order
    const int64_t plan_row = rows(query);
    differentiate<masked>(seen, query, by_row.lse + plan_row, by_row.delta + plan_row);
    add_dq({ds_ + query * kStrip, kStrip, 1}, keys_ + row * head_width, keys, by_row.dq + plan_row * head_width);
  }
  product<kStripVectors, true>({dout, 1, value_width}, p, kStrip, value_dim_, size, dvalues_ + row * value_width,
                               kStrip);
  product<kStripVectors, true>({q, 1, head_width}, ds, kStrip, head_dim_, size, dkeys_ + row * head_width, kStrip);
}

// Eight rows of scores and of dout v^T, in place, into p and ds.
template <bool masked>
void KeyTile::differentiate(const StripMask& seen, int32_t query, const float* lse, const float* delta) {
  for (int32_t i = 0; i < kRows; ++i) {
    for (int v = 0; v < kStripVectors; ++v) {
      const int32_t at = (query + i) * kStrip + v * kLanes;
      Vec p = exp2(load(p_ + at) - lse[i]), ds = p * (load(ds_ + at) - delta[i]);
      if constexpr (masked) p = seen.select(query + i, v, p, 0.0f), ds = seen.select(query + i, v, ds, 0.0f);
      store(p_ + at, p);
      store(ds_ + at, ds);
    }
  }
}

// dq[8][head_width] += ds[8][count] keys[count][head_width].
void KeyTile::add_dq(Left ds, const float* keys, int32_t count, float* dq) const {
  int32_t column = 0;
  for (; column + kStrip <= head_width; column += kStrip) {
    product_block<kStripVectors, true>(ds, keys + column, head_width, count, dq + column, head_width);
  }
  if (column < head_width) product_block<1, true>(ds, keys + column, head_width, count, dq + column, head_width);
}

void KeyTile::finish_keys(int32_t row) {
  Vec scale[kStripVectors];
  for (Vec& lanes : scale) lanes = broadcast(scale_);
  transpose_out(dkeys_ + row * head_width, head_width, scale, staging);
}

void KeyTile::finish_values(int32_t row) {
  Vec one[kStripVectors];
  for (Vec& lanes : one) lanes = broadcast(1.0f);
  transpose_out(dvalues_ + row * value_width, value_width, one, staging);
}

}  // namespace blocksparse
