// Runs the kernels of one pass on a CUDA stream, for TensorFlow's op and for XLA's custom call alike.
#pragma once

#include "../../cpu/call.h"
#include "absl/status/status.h"

namespace blocksparse::gpu {

// Launches without waiting for the device; compiles first where this key was never needed. Errors name pass, dtype,
// shape and capability.
absl::Status run(const Call& call, void* stream, const Allocate& allocate);

// The word that names a pass's kernels; gpu/key.py describes it and makes the same.
std::string key_of(const Call& call, bool backward, int capability);

}  // namespace blocksparse::gpu
