#include "query_tile.h"

#include <algorithm>
#include <cmath>

#include "transpose.h"

namespace blocksparse {

QueryTile::QueryTile(const TilePlan& tiles, int32_t head_dim, int32_t value_dim)
    : head_width(round_up(head_dim, kLanes)), value_width(round_up(value_dim, kLanes)), tiles_(tiles),
      head_dim_(head_dim), value_dim_(value_dim),
      scratch_({{&staging, int64_t{kStrip} * std::max(head_width, value_width)},
                {&keys, int64_t{tiles.column_tile} * head_width},
                {&values, int64_t{tiles.column_tile} * value_width},
                {&queries_, round_up(tiles.row_tile, kStrip) * head_width},
                {&scores_, int64_t{tiles.column_tile} * kStrip},
                {&output_, round_up(tiles.row_tile, kStrip) * value_width}}) {}

void QueryTile::start(int32_t count) {
  count_ = count;
  std::memset(output_, 0, round_up(count, kStrip) * value_width * sizeof(float));
  for (Softmax& strip : softmax_) {
    for (int v = 0; v < kStripVectors; ++v) strip.shift[v] = broadcast(-kInfinity), strip.sum[v] = Vec{};
  }
}

void QueryTile::load_queries(int32_t row, float scale) {
  const Vec factor = broadcast(scale * kLog2e);  // so that exp becomes exp2
  transpose_in(staging, head_width, factor, queries_ + row * head_width);
}

// Strip by strip, so that queries, scores and output of a strip stay in the first-level cache.
void QueryTile::visit(const uint32_t* mask) {
  for (int32_t row = 0; row < count_; row += kStrip) {
    const int32_t words = tiles_.mask_words();
    const StripMask seen =
        mask == nullptr ? StripMask(tiles_.column_tile) : StripMask(mask + row * words, words, count_ - row);
    Softmax* softmax = &softmax_[row / kStrip];
    float* output = output_ + row * value_width;
    compute_scores(queries_ + row * head_width, seen.begin, seen.end);
    mask == nullptr ? raise_shift<false>(seen, softmax, output) : raise_shift<true>(seen, softmax, output);
    exponentiate(softmax, seen.begin, seen.end);
    product<kStripVectors, true>({values + seen.begin * value_width, 1, value_width}, scores_ + seen.begin * kStrip,
                                 kStrip, value_dim_, seen.end - seen.begin, output, kStrip);
  }
}

void QueryTile::compute_scores(const float* queries, int32_t begin, int32_t end) {
  product<kStripVectors, false>({keys + begin * head_width, head_width, 1}, queries, kStrip, end - begin, head_dim_,
                                scores_ + begin * kStrip, kStrip);
}

// Raises the shift when a score passes it by more than 8 (a factor of 256, harmless in float32), which after the first
// tiles is rare, and rescales what is summed. Scores that are not to be seen become -inf on the way.
template <bool masked>
void QueryTile::raise_shift(const StripMask& seen, Softmax* softmax, float* output) {
  for (int v = 0; v < kStripVectors; ++v) {
    const Vec shift = softmax->shift[v];
    Vec top = shift;
    for (int32_t key = seen.begin; key < seen.end; ++key) {
      float* at = scores_ + key * kStrip + v * kLanes;
      Vec score = load(at);
      if constexpr (masked) store(at, score = seen.select(key, v, score, -kInfinity));
      top = max(top, score);
    }
    const Bits passed = top > shift + 8.0f;
    if (!any(passed)) continue;
    softmax->shift[v] = passed ? top : shift;  // lane by lane: no query's result depends on its neighbours
    const Vec keep = shift == broadcast(-kInfinity) ? Vec{} : exp2(shift - softmax->shift[v]);
    softmax->sum[v] *= keep;
    for (int32_t c = 0; c < value_dim_; ++c) {
      float* lanes = output + c * kStrip + v * kLanes;
      store(lanes, load(lanes) * keep);
    }
  }
}

void QueryTile::exponentiate(Softmax* softmax, int32_t begin, int32_t end) {
  for (int v = 0; v < kStripVectors; ++v) {
    const Vec shift = softmax->shift[v] == broadcast(-kInfinity) ? Vec{} : softmax->shift[v];
    Vec sum = softmax->sum[v];
    for (int32_t key = begin; key < end; ++key) {
      float* score = scores_ + key * kStrip + v * kLanes;
      const Vec weight = exp2(load(score) - shift);
      store(score, weight);
      sum += weight;
    }
    softmax->sum[v] = sum;
  }
}

void QueryTile::finish(int32_t row, float* lse) {
  const Softmax& softmax = softmax_[row / kStrip];
  Vec inverse[kStripVectors];
  for (int v = 0; v < kStripVectors; ++v) inverse[v] = softmax.sum[v] == Vec{} ? Vec{} : 1.0f / softmax.sum[v];
  transpose_out(output_ + row * value_width, value_width, inverse, staging);
  for (int32_t i = 0; i < kStrip; ++i) {
    const float sum = softmax.sum[i / kLanes][i % kLanes], shift = softmax.shift[i / kLanes][i % kLanes];
    lse[i] = sum == 0.0f ? -kInfinity : shift * kLn2 + std::log(sum);
  }
}

}  // namespace blocksparse
