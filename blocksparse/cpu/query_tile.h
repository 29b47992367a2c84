// The forward pass over one row tile of queries, in float32: queries in the lanes, keys down the rows.
#pragma once

#include "ahead.h"
#include "mask.h"
#include "scratch.h"

namespace blocksparse {

class QueryTile {
 public:
  QueryTile(const TilePlan& tiles, int32_t head_dim, int32_t value_dim, float scale);

  // Starts a tile of `count` queries: nothing summed yet.
  void start(int32_t count);
  // Takes queries row .. row + kLanes, which stand in `staging`.
  void load_queries(int32_t row);
  // Softmax and weighted sum over the column tile in `keys` and `values`. mask: null when every query sees every key.
  void visit(const uint32_t* mask, Ahead* ahead);
  // Output of queries row .. row + kLanes into `staging`, their log-sum-exp into lse[kLanes].
  void finish(int32_t row, float* lse);

  const int32_t head_width, value_width;  // head_dim and value_dim, rounded up: the strides of what follows
  float* staging;                         // [kLanes][head_width or value_width]
  float *keys, *values;                   // [column_tile][head_width], [column_tile][value_width]

 private:
  struct Softmax {
    Vec shift;  // e^(score - shift) is summed; -inf before the first visible key
    Vec sum;
  };

  template <bool masked>
  void raise_shift(const StripMask& seen, Softmax* softmax, float* output);
  void exponentiate(Softmax* softmax, int32_t begin, int32_t end);

  const TilePlan& tiles_;
  const int32_t head_dim_;
  const float scale_;
  int32_t count_ = 0;
  Scratch scratch_;
  float *queries_, *output_;  // [strips][width][kLanes]
  float* scores_;             // [column_tile][kLanes]
  Softmax softmax_[kMostRows / kLanes];
};

}  // namespace blocksparse
