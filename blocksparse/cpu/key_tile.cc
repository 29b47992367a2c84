#include "key_tile.h"

#include "transpose.h"

namespace blocksparse {

KeyTile::KeyTile(const TilePlan& tiles, int32_t head_dim, int32_t value_dim, float scale)
    : head_width(padded(head_dim)),
      value_width(padded(value_dim)),
      tiles_(tiles),
      head_dim_(head_dim),
      value_dim_(value_dim),
      scale_(scale),
      scratch_({{&staging, int64_t{kLanes} * std::max(head_width, value_width)},
                {&queries, int64_t{tiles.column_tile} * head_width},
                {&douts, int64_t{tiles.column_tile} * value_width},
                {&keys_, int64_t{tiles.row_tile} * head_width},
                {&keys_t_, int64_t{tiles.row_tile} * head_width},
                {&values_t_, int64_t{tiles.row_tile} * value_width},
                {&dkeys_, int64_t{tiles.row_tile} * head_width},
                {&dvalues_, int64_t{tiles.row_tile} * value_width},
                {&p_, int64_t{tiles.column_tile} * kLanes},
                {&ds_, int64_t{tiles.row_tile} * tiles.column_tile}}) {}

void KeyTile::start(int32_t count) {
  count_ = count;
  std::memset(dkeys_, 0, round_up(count, kLanes) * head_width * sizeof(float));
  std::memset(dvalues_, 0, round_up(count, kLanes) * value_width * sizeof(float));
}

void KeyTile::load_keys(int32_t row) {
  transpose_in(staging, head_width, broadcast(1.0f), keys_t_ + row * head_width);
  // A query that does not see a key has ds = 0 for it, and 0 * NaN would reach its dq: keys_ holds finite numbers only.
  // A query that does see it has ds = NaN.
  for (int32_t i = 0; i < kLanes * head_width; i += kLanes) {
    const Vec key = load(staging + i) * scale_;
    store(keys_ + row * head_width + i, key - key == Vec{} ? key : Vec{});
  }
}

void KeyTile::load_values(int32_t row) {
  transpose_in(staging, value_width, broadcast(1.0f), values_t_ + row * value_width);
}

// Strip by strip, so that the strip's keys, values and their gradients stay in the first-level cache.
void KeyTile::visit(const uint32_t* mask, Granules rows, const QueryRows& by_row, Ahead* ahead) {
  const int32_t strips = (count_ + kLanes - 1) / kLanes;
  const auto step = [ahead] { ahead->step(); };
  for (int32_t strip = 0; strip < strips; ++strip) {
    const int32_t row = strip * kLanes;
    const StripMask seen(tiles_, mask, row, count_);
    const int32_t begin = seen.begin, size = seen.end - seen.begin;
    const float *q = queries + begin * head_width, *dout = douts + begin * value_width;
    float *p = p_ + begin * kLanes, *ds = ds_ + (strip * tiles_.column_tile + begin) * kLanes;
    seen_[strip] = {seen.begin, seen.end};
    ahead->aim(strip + 1, strips, (2 * size + head_width + value_width) / kRows);
    // The scale comes last and the terms as in the forward pass, so that the scores have its bits and fit its lse.
    product<false>({q, head_width, 1}, keys_t_ + row * head_width, size, head_dim_, p, step, scale_);
    product<false>({dout, value_width, 1}, values_t_ + row * value_width, size, value_dim_, ds, step);
    for (int32_t i = 0; i < size; i += kRows) {  // kRows plan rows of a granule are consecutive
      const float *lse = by_row.lse + rows(begin + i), *delta = by_row.delta + rows(begin + i);
      float *block = p + i * kLanes, *dblock = ds + i * kLanes;
      mask == nullptr ? differentiate<false>(seen, begin + i, lse, delta, block, dblock)
                      : differentiate<true>(seen, begin + i, lse, delta, block, dblock);
    }
    product<true>({dout, 1, value_width}, p, value_width, size, dvalues_ + row * value_width, step);
    product<true>({q, 1, head_width}, ds, head_width, size, dkeys_ + row * head_width, step);
  }
  add_dq(rows, by_row);
}

// Eight rows of scores and of dout v^T, in place, into p and ds.
template <bool masked>
void KeyTile::differentiate(const StripMask& seen, int32_t query, const float* lse, const float* delta, float* p,
                            float* ds) {
  for (int32_t i = 0; i < kRows; ++i) {
    Vec weight = exp(load(p + i * kLanes) - lse[i]), slope = weight * (load(ds + i * kLanes) - delta[i]);
    if constexpr (masked) {
      weight = seen.select(query + i, weight, 0.0f), slope = seen.select(query + i, slope, 0.0f);
    }
    store(p + i * kLanes, weight);
    store(ds + i * kLanes, slope);
  }
}

// dq += ds keys, eight queries at a time.
void KeyTile::add_dq(Granules rows, const QueryRows& by_row) {
  for (int32_t query = 0; query < tiles_.column_tile; query += kRows) {
    float* dq = by_row.dq + int64_t(rows(query)) * head_width;
    int32_t column = 0;
    for (; column + 2 * kLanes <= head_width; column += 2 * kLanes) add_dq_block<2>(query, column, dq);
    if (column < head_width) add_dq_block<1>(query, column, dq);
  }
}

template <int vectors>
void KeyTile::add_dq_block(int32_t query, int32_t column, float* dq) {
  Block<vectors> block;
  bool any = false;
  for (int32_t row = 0; row < count_; row += kLanes) {
    const Range seen = seen_[row / kLanes];
    if (query < seen.begin || query >= seen.end) continue;
    const float* ds = ds_ + (row / kLanes * tiles_.column_tile + query) * kLanes;
    const int32_t keys = std::min(kLanes, count_ - row);  // past count_ stand keys of an earlier tile
    block.add({ds, kLanes, 1}, keys_ + row * head_width + column, head_width, keys);
    any = true;
  }
  if (any) block.template write<true>(dq + column, head_width);
}

void KeyTile::finish_keys(int32_t row) {
  transpose_out(dkeys_ + row * head_width, head_width, broadcast(scale_), staging);
}

void KeyTile::finish_values(int32_t row) {
  transpose_out(dvalues_ + row * value_width, value_width, broadcast(1.0f), staging);
}

}  // namespace blocksparse
