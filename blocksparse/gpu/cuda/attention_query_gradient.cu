// delta = rowsum(out dout) - dlse and dq = scale ds k of one row tile of queries, with p = exp(scale q k^T - lse) and
// ds = p (dout v^T - delta).
#include "walk.h"

struct Row {  // what the softmax left of a lane's rows
  float lse[kSlots], delta[kSlots];
};

// Writes delta of every row that this block owns. Four lanes share a row, always in the same way, so that the sum has
// one order; all rows are loaded before any is written, so that the loads are under way at once.
DEVICE void write_delta(float* delta, const Element* out, const Element* dout, const float* dlse, const Tile& tile,
                        int time, int heads) {
  constexpr int kSharers = 4, kTurns = (kRows * kSharers + kThreads - 1) / kThreads, kRowChunks = kValueDim / kPerChunk;
  const int part = thread_index() % kSharers, first = thread_index() / kSharers;
  int own[kTurns];
  float sum[kTurns];
  UNROLL for (int turn = 0; turn < kTurns; ++turn) {
    const int row = first + turn * (kThreads / kSharers);
    own[turn] = own_row(tile, row < kRows && exists(tile, row) ? row : 0, time);
    sum[turn] = part == 0 ? -dlse[own[turn]] : 0.0f;
    const Offset at = Offset(own[turn]) * (heads * kValueDim);
    UNROLL for (int c = 0; c < kRowChunks; c += kSharers) {
      if (kRowChunks % kSharers != 0 && c + part >= kRowChunks) break;
      const Offset from = at + (c + part) * kPerChunk;
      sum[turn] = dot(read(out + from), read(dout + from), sum[turn]);
    }
  }
  UNROLL for (int turn = 0; turn < kTurns; ++turn) {
    const int row = first + turn * (kThreads / kSharers);
    sum[turn] += shuffle_xor(sum[turn], 1);
    sum[turn] += shuffle_xor(sum[turn], 2);
    if (part == 0 && row < kRows && exists(tile, row)) delta[own[turn]] = sum[turn];
  }
}

// Replaces what is NaN or infinite among the keys: who sees it has ds NaN, nobody else shall (0 x NaN is NaN).
DEVICE void silence(Stored* keys) {
  sync();
  for (int at = thread_index(); at < kColumns * kHeadPitch; at += kThreads) {
    if (!finite(keys[at])) keys[at] = 0;
  }
  sync();
}

KERNEL BOUNDS(kThreads, BLOCKS)
    attention_query_gradient(const Element* q, const Element* k, const Element* v, const Element* out, const float* lse,
                             const Element* dout, const float* dlse, float* delta, Element* dq, const int* head_index,
                             const int* residues, const int* head_tiles, const int* rows, const int* row_count,
                             const int* offset, const int* full, const int* columns, const int* mask, const int* masks,
                             float scale, float scale_log2, int heads, int query_time, int key_time, int tiles) {
  Tile tile;
  if (!locate({head_index, residues, head_tiles, rows, row_count, offset, full, columns, mask, masks}, heads, tiles,
              &tile)) {
    return;
  }
  SHARED_MEMORY(memory);
  Stage stage;
  Stored* own = reinterpret_cast<Stored*>(stage.place(memory));
  Stored* own_gradient = own + kRows * kHeadPitch;
  clear_shared(memory);
  const i64 query_row = tile.batch * query_time * heads + tile.head,
            key_row = tile.batch * key_time * (heads / kGroup) + tile.head / kGroup;
  const i64 statistics = (tile.batch * heads + tile.head) * query_time;
  write_delta(delta + statistics, out + query_row * kValueDim, dout + query_row * kValueDim, dlse + statistics, tile,
              query_time, heads);
  sync();
  load_own<kHeadDim, kHeadPitch>(own, q + query_row * kHeadDim, tile, query_time, heads, false);
  load_own<kValueDim, kValuePitch>(own_gradient, dout + query_row * kValueDim, tile, query_time, heads, false);
  const int warp_row = warp_index() / kSlices * kWarpRows, slice = warp_index() % kSlices * (kHeadPad / kSlices);

  Row row;
  UNROLL for (int r = 0; r < kSlots; ++r) {
    const bool real = exists(tile, warp_row + row_of(r));
    const i64 at = statistics + (real ? own_row(tile, warp_row + row_of(r), query_time) : 0);
    row.lse[r] = real ? lse[at] * kLog2E : 0.0f;
    row.delta[r] = real ? delta[at] : 0.0f;
  }
  Rows<kHeadPad, kHeadPitch, false> queries;
  Rows<kValuePad, kValuePitch, false> gradients;
  queries.set(own + warp_row * kHeadPitch), gradients.set(own_gradient + warp_row * kValuePitch);
  float result[kHeadTiles][kPart];
  bool silenced = false;
  const Stream stream = {k + key_row * kHeadDim, v + key_row * kValueDim, nullptr, nullptr, key_time, heads / kGroup};
  do {
    clear(result);
    walk<false>(tile, stream, stage, warp_row, [&](const Seen& seen) {
      float s[kScoreTiles][kPart], ds[kScoreTiles][kPart];
      multiply_transposed(s, queries, stage.head);
      multiply_transposed(ds, gradients, stage.value);
      UNROLL for (int t = 0; t < kScoreTiles; ++t) UNROLL for (int i = 0; i < kPart; ++i) {
        const int r = slot_of(i);
        ds[t][i] = power_of_two(fused(s[t][i], scale_log2, -row.lse[r])) * (ds[t][i] - row.delta[r]);
      }
      keep_seen(ds, seen, 0.0f);
      if (silenced) silence(stage.head);
      multiply_add<kScoreTiles, kHeadTiles, kHeadPitch>(result, ds, stage.head + slice);
    });
    // A key that is NaN reaches every row of its tiles. Rare, so noticed afterwards and done again.
    bool bad = false;
    UNROLL for (int t = 0; t < kHeadTiles; ++t) UNROLL for (int i = 0; i < kPart; ++i) bad |=
        result[t][i] != result[t][i];
    silenced = sync_or(bad) && !silenced;
  } while (silenced);

  if (kJoined) {  // the last step has ended with all threads past their queries
    load_own<kHeadDim, kHeadPitch>(own, dq + query_row * kHeadDim, tile, query_time, heads, false);
    sync();
  }
  float factor[kSlots], kept[kSlots];
  UNROLL for (int r = 0; r < kSlots; ++r) factor[r] = scale, kept[r] = 1.0f;
  put_results<kHeadTiles, kHeadPitch>(own + warp_row * kHeadPitch + slice, result, factor, kept);
  sync();
  store_own<kHeadDim, kHeadPitch>(dq + query_row * kHeadDim, own, tile, query_time, heads);
}
