// What the host knows when XLA compiles a call: the custom call's one attribute, an array of int32.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../cpu/plan_words.h"

namespace blocksparse {

constexpr char kTarget[] = "blocksparse_attention";
constexpr const char* kDtypes[] = {"f16", "bf16", "f32", "tf32"};

struct Constants {
  int32_t backward, dtype, heads, head_dim, value_dim;
  float scale;
  int32_t segment_sides;  // operands behind the plans: segment numbers of queries and keys, or none
};
constexpr size_t kWords = sizeof(Constants) / sizeof(int32_t);

// Follows Constants once for each pass, in the order of the plans.
struct PassConstants {
  int32_t orders;
  int32_t header[kHeaderWords];  // the plan's first words
};
constexpr size_t kPassWords = sizeof(PassConstants) / sizeof(int32_t);

}  // namespace blocksparse
