// Calls on tensors shorter than their plan, of kernels that read and write every row of it: they get copies of the
// tensors that go on with zeros. Zeros add nothing to a gradient, and no query of the tensors' own sees a key behind
// their end: the planner gives such plans, or segment numbers, which go on with one that nobody has.
#pragma once

#include <functional>

#include "../../cpu/call.h"
#include "driver.h"

namespace blocksparse::gpu {

// The tensors have every row of the plan.
bool fills_plan(const Call& call);

// Runs the call on such copies; `allocate` makes them.
absl::Status run_padded(const Driver& driver, const Call& call, Handle stream, const Allocate& allocate,
                        const std::function<absl::Status(const Call&)>& run);

}  // namespace blocksparse::gpu
