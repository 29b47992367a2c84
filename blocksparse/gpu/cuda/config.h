// What one kernel is compiled for, out of the macros that __init__.py defines.
#pragma once

#include "plan.h"

template <bool choice, class Yes, class No>
struct Choose {
  typedef Yes Type;
};
template <class Yes, class No>
struct Choose<false, Yes, No> {
  typedef No Type;
};

constexpr int kHeadDim = HEAD_DIM, kValueDim = VALUE_DIM;
constexpr int kRows = ROWS;        // rows of a row tile that one block of threads computes
constexpr int kColumns = COLUMNS;  // columns of a column tile that are multiplied at a time
constexpr int kSlices = SLICES;    // warps that share rows: each has a slice of the results' columns
constexpr int kWarps = WARPS, kThreads = 32 * WARPS;
constexpr bool kWide = WIDE, kHeaviestFirst = HEAVIEST_FIRST;
constexpr bool kJoined = JOINED;  // the results hold those of passes over other keys, and get those over all keys

constexpr int kRowParts = kPlanRows > kRows ? kPlanRows / kRows : 1;
constexpr int kColumnParts = kPlanColumns / kColumns;
constexpr float kLog2E = 1.4426950408889634f;

#if DTYPE_F16
#include "half.h"
#if CAPABILITY >= 75
#include "turing.h"
#else
#include "volta.h"
#endif
#else
#include "single.h"
#endif

// In shared memory a row is padded to whole tiles of every slice, and 16 bytes more: rows then start 16 bytes times an
// odd number apart, so that eight of them, 16 bytes each, fill all 32 banks.
constexpr int kUnit = kTile * kSlices;
constexpr int kHeadPad = (kHeadDim + kUnit - 1) / kUnit * kUnit, kValuePad = (kValueDim + kUnit - 1) / kUnit * kUnit;
constexpr int kHeadPitch = kHeadPad + 16 / sizeof(Stored), kValuePitch = kValuePad + 16 / sizeof(Stored);
constexpr int kHeadTiles = kHeadPad / kSlices / 8, kValueTiles = kValuePad / kSlices / 8, kScoreTiles = kColumns / 8;
static_assert(kRows / kWarpRows * kSlices == kWarps && kThreads >= kColumns, "threads for all rows and columns");
