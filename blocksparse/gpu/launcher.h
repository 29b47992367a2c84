// Runs the kernels of one pass on a CUDA stream, for TensorFlow's op and for XLA's custom call alike.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"

namespace blocksparse::gpu {

struct Call {
  bool backward;
  const char* dtype;  // f16, bf16, f32 or tf32, as keys have it
  int64_t batch, heads, head_dim, value_dim;
  float scale;
  const int32_t* header;  // the plan's first 64 words, on the host
  bool reordered;         // some head's rows are not in the tensor's order
  const void* plan;       // the whole plan, on the device
  // On the device; out and lse are written by the forward pass and read by the backward pass.
  const void *q, *k, *v, *out, *lse, *dout, *dlse;
  void *dq, *dk, *dv;
};

// Device scratch for the kernels of one call; null when there is none left.
using Allocate = absl::FunctionRef<void*(size_t bytes)>;

// Launches without waiting for the device; compiles first where this key was never needed. Errors name pass, shape,
// dtype and capability.
absl::Status run(const Call& call, void* stream, Allocate allocate);

}  // namespace blocksparse::gpu
