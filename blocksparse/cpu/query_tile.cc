#include "query_tile.h"

#include <cmath>

#include "transpose.h"

namespace blocksparse {

QueryTile::QueryTile(const TilePlan& tiles, int32_t head_dim, int32_t value_dim, float scale)
    : head_width(padded(head_dim)),
      value_width(padded(value_dim)),
      tiles_(tiles),
      head_dim_(head_dim),
      scale_(scale),
      scratch_({{&staging, int64_t{kLanes} * std::max(head_width, value_width)},
                {&keys, int64_t{tiles.column_tile} * head_width},
                {&values, int64_t{tiles.column_tile} * value_width},
                {&queries_, int64_t{tiles.row_tile} * head_width},
                {&scores_, int64_t{tiles.column_tile} * kLanes},
                {&output_, int64_t{tiles.row_tile} * value_width}}) {}

void QueryTile::start(int32_t count) {
  count_ = count;
  std::memset(output_, 0, round_up(count, kLanes) * value_width * sizeof(float));
  std::fill(std::begin(softmax_), std::end(softmax_), Softmax{broadcast(-kInfinity), Vec{}});
}

void QueryTile::load_queries(int32_t row) {
  transpose_in(staging, head_width, broadcast(1.0f), queries_ + row * head_width);
}

// Strip by strip, so that queries, scores and output of a strip stay in the first-level cache.
void QueryTile::visit(const uint32_t* mask, Ahead* ahead) {
  const int32_t strips = (count_ + kLanes - 1) / kLanes;
  const auto step = [ahead] { ahead->step(); };
  for (int32_t strip = 0; strip < strips; ++strip) {
    const int32_t row = strip * kLanes;
    const StripMask seen(tiles_, mask, row, count_);
    const int32_t begin = seen.begin, size = seen.end - seen.begin;
    const float *q = queries_ + row * head_width, *k = keys + begin * head_width;
    float *scores = scores_ + begin * kLanes, *output = output_ + row * value_width;
    Softmax* softmax = &softmax_[strip];
    ahead->aim(strip + 1, strips, (size + value_width) / kRows);
    product<false>({k, head_width, 1}, q, size, head_dim_, scores, step, scale_);
    mask == nullptr ? raise_shift<false>(seen, softmax, output) : raise_shift<true>(seen, softmax, output);
    exponentiate(softmax, seen.begin, seen.end);
    product<true>({values + begin * value_width, 1, value_width}, scores, value_width, size, output, step);
  }
}

// Raises the shift when a score passes it by more than 5 (a factor of 148, harmless in float32), which after the first
// tiles is rare, and rescales what is summed. Scores that are not to be seen become -inf on the way.
template <bool masked>
void QueryTile::raise_shift(const StripMask& seen, Softmax* softmax, float* output) {
  const Vec shift = softmax->shift;
  Vec top = shift;
  for (int32_t key = seen.begin; key < seen.end; ++key) {
    float* at = scores_ + key * kLanes;
    Vec score = load(at);
    if constexpr (masked) store(at, score = seen.select(key, score, -kInfinity));
    top = max(top, score);
  }
  const Bits passed = top > shift + 5.0f;
  if (!any(passed)) return;
  softmax->shift = passed ? top : shift;  // lane by lane: no query's result depends on its neighbours
  if (!any(softmax->sum != Vec{})) return;
  const Vec keep = shift == broadcast(-kInfinity) ? Vec{} : exp(shift - softmax->shift);
  softmax->sum *= keep;
  for (int32_t c = 0; c < value_width; ++c) store(output + c * kLanes, load(output + c * kLanes) * keep);
}

void QueryTile::exponentiate(Softmax* softmax, int32_t begin, int32_t end) {
  const Vec shift = softmax->shift == broadcast(-kInfinity) ? Vec{} : softmax->shift;
  Vec sum = softmax->sum;
  for (int32_t key = begin; key < end; ++key) {
    float* score = scores_ + key * kLanes;
    const Vec weight = exp(load(score) - shift);
    store(score, weight);
    sum += weight;
  }
  softmax->sum = sum;
}

void QueryTile::finish(int32_t row, float* lse) {
  const Softmax& softmax = softmax_[row / kLanes];
  const Vec inverse = softmax.sum == Vec{} ? Vec{} : 1.0f / softmax.sum;
  transpose_out(output_ + row * value_width, value_width, inverse, staging);
  for (int32_t i = 0; i < kLanes; ++i) {
    lse[i] = softmax.sum[i] == 0.0f ? -kInfinity : softmax.shift[i] + std::log(softmax.sum[i]);
  }
}

}  // namespace blocksparse
