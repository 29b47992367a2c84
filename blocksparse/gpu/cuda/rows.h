// Rows of one head between global and shared memory, 16 bytes of global memory at a time.
#pragma once

#include "tile.h"

constexpr int kPerChunk = 16 / sizeof(Element);

DEVICE Chunk read(const Element* from) { return *reinterpret_cast<const Chunk*>(from); }

// sum + a . b, first number first.
DEVICE float dot(const Chunk& a, const Chunk& b, float sum) {
  UNROLL for (int i = 0; i < kPerChunk; ++i) {
    sum = fused(value_of(reinterpret_cast<const Element*>(&a)[i]), value_of(reinterpret_cast<const Element*>(&b)[i]),
                sum);
  }
  return sum;
}

// A step's rows on their way: asked for while the step before is multiplied, put when that is done.
template <int kDim, int kPitch>
struct Ahead {
  static constexpr int kRowChunks = kDim / kPerChunk, kAll = kColumns * kRowChunks;
  static constexpr int kMine = (kAll + kThreads - 1) / kThreads;
  Chunk chunk[kMine];

  // kReaders: `head` is a key head's first reader of `heads` key heads', and row r is row r % time of reader r / time.
  template <bool kReaders>
  METHOD void ask(const Element* head, const int* rows, int time, int heads) {
    UNROLL for (int i = 0; i < kMine; ++i) {
      const int c = i * kThreads + thread_index();
      if (kAll % kThreads != 0 && c >= kAll) break;
      const int row = rows[c / kRowChunks], reader = kReaders ? row / time : 0;
      const Offset at = Offset(row - reader * time) * (heads * kDim * (kReaders ? kGroup : 1)) + reader * kDim;
      chunk[i] = read(head + at + c % kRowChunks * kPerChunk);
    }
  }
  METHOD void arrive(Stored* to) const {
    UNROLL for (int i = 0; i < kMine; ++i) {
      const int c = i * kThreads + thread_index();
      if (kAll % kThreads != 0 && c >= kAll) break;
      put(to + c / kRowChunks * kPitch + c % kRowChunks * kPerChunk, chunk[i], false);
    }
  }
};

// The rows that this block owns; zeros where one does not exist. Without branches, so that many loads are under way at
// once.
template <int kDim, int kPitch>
DEVICE void load_own(Stored* to, const Element* head, const Tile& tile, int time, int heads, bool negative) {
  constexpr int kRowChunks = kDim / kPerChunk, kAll = kRows * kRowChunks, kAtOnce = 4;
  for (int first = thread_index(); first < kAll; first += kAtOnce * kThreads) {
    Chunk chunk[kAtOnce];
    UNROLL for (int i = 0; i < kAtOnce; ++i) {
      const int c = first + i * kThreads, row = c / kRowChunks;
      const bool real = c < kAll && exists(tile, row);
      const Element* from = head + Offset(own_row(tile, real ? row : 0, time)) * (heads * kDim);
      chunk[i] = real ? read(from + c % kRowChunks * kPerChunk) : Chunk{};
    }
    UNROLL for (int i = 0; i < kAtOnce; ++i) {
      const int c = first + i * kThreads;
      if (c < kAll) put(to + c / kRowChunks * kPitch + c % kRowChunks * kPerChunk, chunk[i], negative);
    }
  }
}

template <int kDim, int kPitch>
DEVICE void store_own(Element* head, const Stored* from, const Tile& tile, int time, int heads) {
  constexpr int kRowChunks = kDim / kPerChunk;
  for (int c = thread_index(); c < kRows * kRowChunks; c += kThreads) {
    const int row = c / kRowChunks, at = c % kRowChunks * kPerChunk;
    if (!exists(tile, row)) continue;
    Element* to = head + Offset(own_row(tile, row, time)) * (heads * kDim) + at;
    *reinterpret_cast<Chunk*>(to) = take(from + row * kPitch + at);
  }
}

// A warp's results, times `factor` of each of a lane's rows, into shared memory; joined: plus what stands there, the
// results of earlier passes, times `kept`.
template <int kTiles, int kPitch>
DEVICE void put_results(Stored* to, const float (&c)[kTiles][kPart], const float (&factor)[kSlots],
                        const float (&kept)[kSlots]) {
  UNROLL for (int t = 0; t < kTiles; ++t) UNROLL for (int i = 0; i < kPart; i += 2) {
    const int s = slot_of(i);
    Stored* at = to + row_of(s) * kPitch + dim_of(t, i);
    float first = c[t][i] * factor[s], second = c[t][i + 1] * factor[s];
    if (kJoined) first = fused(value_of(at[0]), kept[s], first), second = fused(value_of(at[1]), kept[s], second);
    put_pair(at, first, second);
  }
}

template <int kTiles>
DEVICE void clear(float (&c)[kTiles][kPart]) {
  UNROLL for (int t = 0; t < kTiles; ++t) UNROLL for (int i = 0; i < kPart; ++i) c[t][i] = 0.0f;
}

// Zeros for what no load writes, if there is any: columns past a head's own.
DEVICE void clear_shared(char* memory) {
  if (kHeadPad == kHeadDim && kValuePad == kValueDim) return;
  const Chunk zero = {};
  for (int at = 16 * thread_index(); at < SHARED_BYTES; at += 16 * kThreads)
    *reinterpret_cast<Chunk*>(memory + at) = zero;
}
