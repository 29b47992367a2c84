// The backward pass over one row tile of keys, in float32: keys in the lanes, queries down the rows.
//   p = exp(scale q k^T - lse), ds = p (dout v^T - delta), dv += p^T dout, dk += scale ds^T q, dq += scale ds k.
#pragma once

#include "mask.h"
#include "rows.h"
#include "scratch.h"

namespace blocksparse {

// What the backward pass knows of each query, by plan row.
struct QueryRows {
  const float *lse, *delta;  // lse to base 2; delta = sum of dout * out, less dlse
  float* dq;                 // [head_width] a row, added to
};

class KeyTile {
 public:
  KeyTile(const TilePlan& tiles, int32_t head_dim, int32_t value_dim, float scale);

  // Starts a tile of `count` keys: gradients 0.
  void start(int32_t count);
  // Take keys, values row .. row + kStrip, which stand in `staging`.
  void load_keys(int32_t row);
  void load_values(int32_t row);
  // Adds what the queries of one column tile contribute, whose q and dout stand in `queries` and `douts`. mask: null
  // when they see every key.
  void visit(const uint32_t* mask, Granules rows, const QueryRows& by_row);
  // Gradients of keys, values row .. row + kStrip into `staging`.
  void finish_keys(int32_t row);
  void finish_values(int32_t row);

  const int32_t head_width, value_width;  // head_dim and value_dim in whole registers: the strides of what follows
  float *staging;                         // [kStrip][head_width or value_width]
  float *queries, *douts;                 // [column_tile][head_width], [column_tile][value_width]

 private:
  template <bool masked>
  void visit_strip(const StripMask& seen, Granules rows, int32_t row, const QueryRows& by_row);
  template <bool masked>
  void differentiate(const StripMask& seen, int32_t query, const float* lse, const float* delta);
  void add_dq(Left ds, const float* keys, int32_t count, float* dq) const;

  const TilePlan& tiles_;
  const int32_t head_dim_, value_dim_;
  const float scale_;
  int32_t count_ = 0;
  Scratch scratch_;
  float *keys_;                                     // [row_tile][head_width], times scale
  float *keys_t_, *values_t_, *dkeys_, *dvalues_;   // [strips][width][kStrip]
  float *p_, *ds_;                                  // [column_tile][kStrip]
};

}  // namespace blocksparse
