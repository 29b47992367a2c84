// The forward pass over one row tile of queries, in float32: queries in the lanes, keys down the rows.
#pragma once

#include "mask.h"
#include "scratch.h"

namespace blocksparse {

class QueryTile {
 public:
  QueryTile(const TilePlan& tiles, int32_t head_dim, int32_t value_dim);

  // Starts a tile of `count` queries: nothing summed yet.
  void start(int32_t count);
  // Takes queries row .. row + kStrip, which stand in `staging`; `scale` folds into them.
  void load_queries(int32_t row, float scale);
  // Softmax and weighted sum over the column tile in `keys` and `values`. mask: null when every query sees every key.
  void visit(const uint32_t* mask);
  // Output of queries row .. row + kStrip into `staging`, their log-sum-exp into lse[kStrip].
  void finish(int32_t row, float* lse);

  const int32_t head_width, value_width;  // head_dim and value_dim in whole registers: the strides of what follows
  float *staging;                         // [kStrip][head_width or value_width]
  float *keys, *values;                   // [column_tile][head_width], [column_tile][value_width]

 private:
  struct Softmax {
    Vec shift[kStripVectors];  // 2^(score - shift) is summed; -inf before the first visible key
    Vec sum[kStripVectors];
  };

  void compute_scores(const float* queries, int32_t begin, int32_t end);
  template <bool masked>
  void raise_shift(const StripMask& seen, Softmax* softmax, float* output);
  void exponentiate(Softmax* softmax, int32_t begin, int32_t end);

  const TilePlan& tiles_;
  const int32_t head_dim_, value_dim_;
  int32_t count_ = 0;
  Scratch scratch_;
  float *queries_, *output_;  // [strips][width][kStrip]
  float* scores_;             // [column_tile][kStrip]
  Softmax softmax_[kMostRows / kStrip];
};

}  // namespace blocksparse
