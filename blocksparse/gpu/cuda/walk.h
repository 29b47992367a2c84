// The loop of every kernel: step after step, kColumns gathered rows of two tensors pass through shared memory.
#pragma once

#include "rows.h"

// What passes: rows of q or k, rows of v or dout; where `statistics`, two numbers a row as well: then these are
// queries, of all heads that read a key head.
struct Stream {
  const Element *heads_of_dim, *heads_of_value;
  const float *lse, *delta;
  int time, heads;
};

struct Stage {
  Stored *head, *value;  // [kColumns] rows each
  int* rows;             // [2][kColumns] tensor rows of this step or the one after the next, and of the next
  float *lse, *delta;    // [kColumns]

  METHOD char* place(char* memory) {
    head = reinterpret_cast<Stored*>(memory);
    value = head + kColumns * kHeadPitch;
    rows = reinterpret_cast<int*>(value + kColumns * kValuePitch);
    lse = reinterpret_cast<float*>(rows + 2 * kColumns);
    delta = lse + kColumns;
    return reinterpret_cast<char*>(delta + kColumns);
  }
};

// A thread's part of a step that is under way.
template <bool kStatistics>
struct Arrival {
  Ahead<kHeadDim, kHeadPitch> head;
  Ahead<kValueDim, kValuePitch> value;
  float lse, delta;

  METHOD void ask(const Stream& from, const int* rows) {
    constexpr bool kReaders = kStatistics && kGroup > 1;
    head.template ask<kReaders>(from.heads_of_dim, rows, from.time, from.heads);
    value.template ask<kReaders>(from.heads_of_value, rows, from.time, from.heads);
    if (kStatistics && thread_index() < kColumns) {
      lse = from.lse[rows[thread_index()]];
      delta = from.delta[rows[thread_index()]];
    }
  }
  METHOD void arrive(const Stage& stage) const {
    head.arrive(stage.head);
    value.arrive(stage.value);
    if (kStatistics && thread_index() < kColumns) {
      stage.lse[thread_index()] = lse * kLog2E;
      stage.delta[thread_index()] = delta;
    }
  }
};

// Calls compute(seen) for every step. There is no asynchronous copy on these GPUs: a step's rows are loaded into
// registers while the step before is multiplied, their numbers two steps earlier, mask numbers two and mask words one
// ahead.
template <bool kStatistics, class Compute>
DEVICE void walk(const Tile& tile, const Stream& from, const Stage& stage, int warp_row, Compute compute) {
  constexpr bool kReaders = kStatistics && kGroup > 1;
  const int n = thread_index();
  int row = 0;
  sync();  // a walk before this one may still be multiplying
  if (tile.steps == 0) return;
  if (n < kColumns) {
    stage.rows[n] = column_row<kReaders>(tile, 0, n, from.time);
    stage.rows[kColumns + n] = column_row<kReaders>(tile, 1, n, from.time);
    row = column_row<kReaders>(tile, 2, n, from.time);
  }
  sync();
  Arrival<kStatistics> arrival;
  arrival.ask(from, stage.rows);
  Seen next = seen_in(tile, 0, mask_number(tile, 0), warp_row);
  int number = mask_number(tile, 1);
  for (int step = 0; step < tile.steps; ++step) {
    sync();
    arrival.arrive(stage);
    if (n < kColumns) stage.rows[step % 2 * kColumns + n] = row;
    sync();
    const Seen seen = next;
    if (step + 1 < tile.steps) arrival.ask(from, stage.rows + (step + 1) % 2 * kColumns);
    if (n < kColumns) row = column_row<kReaders>(tile, step + 3, n, from.time);
    next = seen_in(tile, step + 1, number, warp_row);
    number = mask_number(tile, step + 2);
    compute(seen);
  }
}
