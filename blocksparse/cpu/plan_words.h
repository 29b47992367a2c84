// Where a plan's int32 vector holds what: the C++ names of plan/blob.py's Word, SIDE and ARRAYS. A test compares the
// two.
#pragma once

#include <cstdint>

namespace blocksparse {

constexpr int32_t kPlanMagic = 0x42535031, kPlanVersion = 1;
constexpr int kHeaderWords = 64;

// Words of the header. Those without a name are 0.
enum Word : int {
  kMagic = 0,
  kVersion = 1,
  kHash = 2,  // four words: BLAKE2b of all that follows them
  kLength = 6,
  kQueryTime = 7,
  kKeyTime = 8,
  kHeads = 9,
  kDistinct = 10,
  kKeyArraysEnd = 11,  // two words: where the last two of by_key's arrays start
  kClosed = 13,
  kKeyHeads = 14,      // heads of keys; 0 where there are as many as heads
  kDistinctKeys = 15,  // distinct key heads; this and the two below are 0 with kKeyHeads
  kByQuery = 16,       // eight words: those of side
  kByKey = 32,
  kKeyIndex = 40,  // where an array starts
  kKeyResidues = 41,
  kHeadIndex = 48,  // from here on: where an array starts
  kResidues = 49,
  kQueryArrays = 50,  // eight words: those of array
  kKeyArrays = 58,    // six words: the first six of array; kKeyArraysEnd has the others
};
constexpr int kHashEnd = kHash + 4;

// What the words from kByQuery and from kByKey on mean.
namespace side {
enum : int {
  kRowTile,
  kColumnTile,
  kGranule,
  kRowTiles,
  kColumnTiles,
  kMasks,
  kMostRowTiles,
  kMostColumnTiles,
  kCount,
};
}  // namespace side

// The arrays of a TilePlan.
namespace array {
enum : int {
  kHeadTiles,
  kRows,
  kRowCount,
  kOffset,
  kFull,
  kColumns,
  kMask,
  kMasks,
  kCount,
};
}  // namespace array

// The words that say where by_query's and by_key's arrays start.
constexpr int kQueryStarts[array::kCount] = {50, 51, 52, 53, 54, 55, 56, 57};
constexpr int kKeyStarts[array::kCount] = {58, 59, 60, 61, 62, 63, 11, 12};
static_assert(kQueryStarts[0] == kQueryArrays && kKeyStarts[0] == kKeyArrays && kKeyStarts[6] == kKeyArraysEnd, "");

}  // namespace blocksparse
