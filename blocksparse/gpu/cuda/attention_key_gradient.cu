// dv = p^T dout and dk = scale ds^T q of one row tile of keys, with p = exp(scale q k^T - lse) and
// ds = p (dout v^T - delta); its column tiles are queries, and s, p, ds stand as [keys, queries].
#include "walk.h"

KERNEL BOUNDS(kThreads, BLOCKS)
    attention_key_gradient(const Element* q, const Element* k, const Element* v, const float* lse, const Element* dout,
                           const float* delta, Element* dk, Element* dv, const int* head_index, const int* residues,
                           const int* head_tiles, const int* rows, const int* row_count, const int* offset,
                           const int* full, const int* columns, const int* mask, const int* masks, float scale,
                           float scale_log2, int heads, int query_time, int key_time, int tiles) {
  Tile tile;
  if (!locate({head_index, residues, head_tiles, rows, row_count, offset, full, columns, mask, masks}, heads, tiles,
              &tile)) {
    return;
  }
  SHARED_MEMORY(memory);
  Stage stage;
  Stored* own_key = reinterpret_cast<Stored*>(stage.place(memory));
  Stored* own_value = own_key + kRows * kHeadPitch;
  clear_shared(memory);
  sync();
  const i64 query_row = (tile.batch * query_time * heads + tile.head) * kGroup,
            key_row = tile.batch * key_time * heads + tile.head;
  const i64 statistics = (tile.batch * heads + tile.head) * kGroup * query_time;
  load_own<kHeadDim, kHeadPitch>(own_key, k + key_row * kHeadDim, tile, key_time, heads, false);
  load_own<kValueDim, kValuePitch>(own_value, v + key_row * kValueDim, tile, key_time, heads, false);
  const int warp_row = warp_index() / kSlices * kWarpRows, slice = warp_index() % kSlices;
  const int head_slice = slice * (kHeadPad / kSlices), value_slice = slice * (kValuePad / kSlices);

  Rows<kHeadPad, kHeadPitch, false> keys;
  Rows<kValuePad, kValuePitch, false> values;
  keys.set(own_key + warp_row * kHeadPitch), values.set(own_value + warp_row * kValuePitch);
  float key_gradient[kHeadTiles][kPart], value_gradient[kValueTiles][kPart];
  clear(key_gradient), clear(value_gradient);
  const Stream stream = {
      q + query_row * kHeadDim, dout + query_row * kValueDim, lse + statistics, delta + statistics, query_time, heads};
  walk<true>(tile, stream, stage, warp_row, [&](const Seen& seen) {
    float p[kScoreTiles][kPart], ds[kScoreTiles][kPart];
    multiply_transposed(p, keys, stage.head);
    multiply_transposed(ds, values, stage.value);
    UNROLL for (int t = 0; t < kScoreTiles; ++t) UNROLL for (int i = 0; i < kPart; ++i) {
      const int query = 8 * t + column_of(i);
      p[t][i] = power_of_two(fused(p[t][i], scale_log2, -stage.lse[query]));
      ds[t][i] = p[t][i] * (ds[t][i] - stage.delta[query]);
    }
    keep_seen(p, seen, 0.0f), keep_seen(ds, seen, 0.0f);  // both: a query that sees a NaN key has NaN in lse and delta
    multiply_add<kScoreTiles, kValueTiles, kValuePitch>(value_gradient, p, stage.value + value_slice);
    multiply_add<kScoreTiles, kHeadTiles, kHeadPitch>(key_gradient, ds, stage.head + head_slice);
  });

  sync();  // the rows' own places take their results
  if (kJoined) {
    load_own<kHeadDim, kHeadPitch>(own_key, dk + key_row * kHeadDim, tile, key_time, heads, false);
    load_own<kValueDim, kValuePitch>(own_value, dv + key_row * kValueDim, tile, key_time, heads, false);
    sync();
  }
  float as_is[kSlots], scaled[kSlots];
  UNROLL for (int r = 0; r < kSlots; ++r) as_is[r] = 1.0f, scaled[r] = scale;
  put_results<kHeadTiles, kHeadPitch>(own_key + warp_row * kHeadPitch + head_slice, key_gradient, scaled, as_is);
  put_results<kValueTiles, kValuePitch>(own_value + warp_row * kValuePitch + value_slice, value_gradient, as_is, as_is);
  sync();
  store_own<kHeadDim, kHeadPitch>(dk + key_row * kHeadDim, own_key, tile, key_time, heads);
  store_own<kValueDim, kValuePitch>(dv + key_row * kValueDim, own_value, tile, key_time, heads);
}
