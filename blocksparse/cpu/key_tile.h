// The backward pass over one row tile of keys, in float32: keys in the lanes, queries down the rows.
//   p = exp(scale q k^T - lse), ds = p (dout v^T - delta), dv += p^T dout, dk += scale ds^T q, dq += scale ds k.
#pragma once

#include "mask.h"
#include "rows.h"
#include "scratch.h"

namespace blocksparse {

class KeyTile {
 public:
  KeyTile(const TilePlan& tiles, int32_t head_dim, int32_t value_dim, float scale);

  // Starts a tile of `count` keys: gradients 0.
  void start(int32_t count);
  // Take keys, values row .. row + kStrip, which stand in `staging`.
  void load_keys(int32_t row);
  void load_values(int32_t row);
  // Adds what the queries of one column tile (in queries, douts, lse, delta) contribute. mask: null when they see every
  // key. dq: float32 rows of head_width by plan row.
  void visit(const uint32_t* mask, Granules rows, float* dq);
  // Gradients of keys, values row .. row + kStrip into `staging`.
  void finish_keys(int32_t row);
  void finish_values(int32_t row);

  const int32_t head_width, value_width;  // head_dim and value_dim in whole registers: the strides of what follows
  float *staging;                         // [kStrip][head_width or value_width]
  float *queries, *douts;                 // [column_tile][head_width], [column_tile][value_width]
  float *lse, *delta;                     // [column_tile]; lse to base 2

 private:
  template <bool masked>
  void visit_strip(const StripMask& seen, Granules rows, int32_t row, float* dq);
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
