// The backward pass over one row tile of keys, in float32: keys in the lanes, queries down the rows.
//   p = exp(scale q k^T - lse), ds = p (dout v^T - delta), dv += p^T dout, dk += scale ds^T q, dq += scale ds k.
#pragma once

#include "ahead.h"
#include "mask.h"
#include "scratch.h"

namespace blocksparse {

// What the backward pass knows of each query, by plan row.
struct QueryRows {
  float *lse, *delta;  // delta = sum of dout * out, less dlse
  float* dq;           // [head_width] a row, added to
};

class KeyTile {
 public:
  KeyTile(const TilePlan& tiles, int32_t head_dim, int32_t value_dim, float scale);

  // Starts a tile of `count` keys: gradients 0.
  void start(int32_t count);
  // Take keys, values row .. row + kLanes, which stand in `staging`.
  void load_keys(int32_t row);
  void load_values(int32_t row);
  // Adds what the queries of one column tile contribute, whose q and dout stand in `queries` and `douts`. mask: null
  // when they see every key.
  void visit(const uint32_t* mask, Granules rows, const QueryRows& by_row, Ahead* ahead);
  // Gradients of keys, values row .. row + kLanes into `staging`.
  void finish_keys(int32_t row);
  void finish_values(int32_t row);

  const int32_t head_width, value_width;  // head_dim and value_dim, rounded up: the strides of what follows
  float* staging;                         // [kLanes][head_width or value_width]
  float *queries, *douts;                 // [column_tile][head_width], [column_tile][value_width]

 private:
  template <bool masked>
  void differentiate(const StripMask& seen, int32_t query, const float* lse, const float* delta, float* p, float* ds);
  void add_dq(Granules rows, const QueryRows& by_row);
  template <int vectors>
  void add_dq_block(int32_t query, int32_t column, float* dq);

  const TilePlan& tiles_;
  const int32_t head_dim_, value_dim_;
  const float scale_;
  int32_t count_ = 0;
  Scratch scratch_;
  float* keys_;                                    // [row_tile][head_width], times scale
  float *keys_t_, *values_t_, *dkeys_, *dvalues_;  // [strips][width][kLanes]
  float *p_, *ds_;                                 // [column_tile][kLanes], [strips][column_tile][kLanes]
  struct Range {
    int32_t begin, end;
  } seen_[kMostRows / kLanes];  // the queries that see a key of the strip
};

}  // namespace blocksparse
