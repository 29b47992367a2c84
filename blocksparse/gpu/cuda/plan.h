// The plan of one side as a kernel sees it: its tiles and the order of its rows, out of the macros that __init__.py
// defines. Letters as in ../kernels/primitives.py: a plan row is a row in the plan's order, a tensor row one in memory.
#pragma once

#include <device.h>

constexpr int kPlanRows = M, kPlanColumns = N, kGranule = GRANULE;
constexpr bool kPermuted = PERMUTED, kShared = SHARED;
constexpr int kGroup = GROUP;         // so many query heads read one key head
constexpr bool kSegments = SEGMENTS;  // positions have segment numbers: the lists are what cut.h has left of the plan's
constexpr bool kOrders = ORDERS;      // and heads lie in different orders, so that each has lists of its own
#undef M
#undef N

constexpr int kMaskWords = (kPlanColumns + 31) / 32;

// What the launcher passes of one side: arrays as in ../../plan's TilePlan, or where kSegments, offset, columns, mask
// and masks as ../kernels/cut.py describes them.
struct Side {
  const int *head_index, *residues, *head_tiles, *rows, *row_count, *offset, *full, *columns, *mask, *masks;
};

// Plan row r is tensor row (r % (time / stride)) * stride + r / (time / stride).
DEVICE int tensor_row(int row, int time, int stride) {
  if (!kPermuted) return row;
  const int run = time / stride;
  return row % run * stride + row / run;
}

DEVICE int gathered(const int* granules, int n, int time, int stride) {
  const int first = tensor_row(granules[n / kGranule] * kGranule, time, stride);
  return first + n % kGranule * (kPermuted ? stride : 1);  // a run never crosses into the next residue class
}
