// What bytes have to be to pass as a plan. Kernels follow the plan's words without a look: this is the look.
#pragma once

#include <cstdint>
#include <string>

namespace blocksparse {

// What is first found wrong in `size` int32 that shall be a plan, or an empty string. Takes time and memory in
// proportion to `size`, whatever the words say. Not checked: whether by_query and by_key tell of the same pairs (if
// not, gradients are wrong; no memory is).
std::string check_plan(const int32_t* data, int64_t size);

}  // namespace blocksparse
