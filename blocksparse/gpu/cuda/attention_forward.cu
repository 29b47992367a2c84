// out = softmax(scale q k^T) v over each row tile's column tiles, and the natural log-sum-exp of every row.
//
// Online softmax in base 2: top is the running row maximum of scale * log2(e) * q.k, sum the row sum of exp2(s - top).
#include "walk.h"

struct Softmax {
  float top[kSlots], sum[kSlots];  // of a lane's rows; sum: of the columns that the lane holds
  float result[kValueTiles][kPart];
};

// Takes one step's scores, -infinity where not seen, into the softmax; leaves probabilities in their place.
DEVICE void absorb(Softmax& softmax, float (&s)[kScoreTiles][kPart], float scale_log2) {
  float fade[kSlots], reference[kSlots];
  UNROLL for (int r = 0; r < kSlots; ++r) {
    float best = -infinity();
    UNROLL for (int t = 0; t < kScoreTiles; ++t) UNROLL for (int i = 0; i < kPart; ++i) {
      if (slot_of(i) == r) best = larger(best, s[t][i]);
    }
    const float top = larger(softmax.top[r], row_max(best) * scale_log2);
    reference[r] = top == -infinity() ? 0.0f : top;  // rows that have seen nothing yet
    fade[r] = power_of_two(softmax.top[r] - reference[r]);
    softmax.top[r] = top;
    softmax.sum[r] *= fade[r];
  }
  UNROLL for (int t = 0; t < kScoreTiles; ++t) UNROLL for (int i = 0; i < kPart; ++i) {
    s[t][i] = power_of_two(fused(s[t][i], scale_log2, -reference[slot_of(i)]));
    softmax.sum[slot_of(i)] += s[t][i];
  }
  UNROLL for (int t = 0; t < kValueTiles; ++t) UNROLL for (int i = 0; i < kPart; ++i) {
    softmax.result[t][i] *= fade[slot_of(i)];
  }
}

// The log-sum-exp of one row over the keys of all passes, and in factor and kept the weights of this pass's result and
// of the earlier ones', factor being the former's own. A pass that shows the row no key has weight 0.
DEVICE float join(float earlier, float log_sum, float* factor, float* kept) {
  float top = larger(earlier, log_sum);
  if (top == -infinity()) top = 0.0f;  // no pass has shown a key: -infinity - -infinity would be NaN
  const float before = power_of_two((earlier - top) * kLog2E), now = power_of_two((log_sum - top) * kLog2E);
  const float total = before + now, share = 1.0f / (total == 0.0f ? 1.0f : total);
  *factor *= now * share;
  *kept = before * share;
  return total == 0.0f ? -infinity() : top + logarithm(total) / kLog2E;
}

KERNEL BOUNDS(kThreads, BLOCKS)
    attention_forward(const Element* q, const Element* k, const Element* v, Element* out, float* lse,
                      const int* head_index, const int* residues, const int* head_tiles, const int* rows,
                      const int* row_count, const int* offset, const int* full, const int* columns, const int* mask,
                      const int* masks, float scale_log2, int heads, int query_time, int key_time, int tiles) {
  Tile tile;
  if (!locate({head_index, residues, head_tiles, rows, row_count, offset, full, columns, mask, masks}, heads, tiles,
              &tile)) {
    return;
  }
  SHARED_MEMORY(memory);
  Stage stage;
  Stored* own = reinterpret_cast<Stored*>(stage.place(memory));
  clear_shared(memory);
  sync();
  // The running maximum wants a positive scale, and -infinity times zero would be NaN.
  const i64 query_row = tile.batch * query_time * heads + tile.head,
            key_row = tile.batch * key_time * (heads / kGroup) + tile.head / kGroup;
  load_own<kHeadDim, kHeadPitch>(own, q + query_row * kHeadDim, tile, query_time, heads, scale_log2 < 0);
  scale_log2 = larger(scale_log2 < 0 ? -scale_log2 : scale_log2, 0x1p-126f);
  const int warp_row = warp_index() / kSlices * kWarpRows, slice = warp_index() % kSlices * (kValuePad / kSlices);

  Softmax softmax;
  UNROLL for (int r = 0; r < kSlots; ++r) softmax.top[r] = -infinity(), softmax.sum[r] = 0.0f;
  clear(softmax.result);
  sync();
  Rows<kHeadPad, kHeadPitch, HELD> queries;
  queries.set(own + warp_row * kHeadPitch);
  const Stream stream = {k + key_row * kHeadDim, v + key_row * kValueDim, nullptr, nullptr, key_time, heads / kGroup};
  walk<false>(tile, stream, stage, warp_row, [&](const Seen& seen) {
    float s[kScoreTiles][kPart];
    multiply_transposed(s, queries, stage.head);
    keep_seen(s, seen, -infinity());
    absorb(softmax, s, scale_log2);
    multiply_add<kScoreTiles, kValueTiles, kValuePitch>(softmax.result, s, stage.value + slice);
  });

  sync();  // the rows' own place takes their results
  float factor[kSlots], kept[kSlots], earlier[kSlots];
  if (kJoined) {
    const float* before = lse + (tile.batch * heads + tile.head) * query_time;
    UNROLL for (int r = 0; r < kSlots; ++r) {
      const int row = warp_row + row_of(r);
      kept[r] = 0.0f;
      earlier[r] = exists(tile, row) ? before[own_row(tile, row, query_time)] : -infinity();
    }
    load_own<kValueDim, kValuePitch>(own, out + query_row * kValueDim, tile, query_time, heads, false);
    sync();  // also before a row's lse is written, which several threads read
  }
  UNROLL for (int r = 0; r < kSlots; ++r) {
    const float sum = row_sum(softmax.sum[r]);
    const bool empty = sum == 0.0f;
    factor[r] = 1.0f / (empty ? 1.0f : sum);
    const int row = warp_row + row_of(r);
    if (!exists(tile, row)) continue;
    const i64 at = (tile.batch * heads + tile.head) * query_time + own_row(tile, row, query_time);
    float log_sum = empty ? -infinity() : (softmax.top[r] + logarithm(sum)) / kLog2E;
    if (kJoined) log_sum = join(earlier[r], log_sum, &factor[r], &kept[r]);
    lse[at] = log_sum;
  }
  put_results<kValueTiles, kValuePitch>(own + warp_row * kValuePitch + slice, softmax.result, factor, kept);
  sync();
  store_own<kValueDim, kValuePitch>(out + query_row * kValueDim, own, tile, query_time, heads);
}
