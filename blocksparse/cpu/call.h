// One forward or backward call on buffers that the caller owns, and the functions that run it: the XLA library reaches
// the CPU and GPU libraries through pointers to them, so that each is built alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include "attention.h"

namespace blocksparse {

struct Call {
  bool backward;
  const char* dtype;  // f16, bf16, f32 or tf32, as the keys of GPU kernels have it
  Shape shape;
  const int32_t* header;  // the plan's first 64 words, on the host
  int32_t orders;         // Plan::orders
  const void* plan;       // the whole plan, where the tensors are
  int64_t plan_size;      // int32 words
  // out and lse are written by the forward pass and read by the backward pass.
  const void *q, *k, *v, *out, *lse, *dout, *dlse;
  const int32_t *query_segments, *key_segments;  // null where positions have no segment numbers
  void *dq, *dk, *dv;
  bool onto;  // the results hold those of passes over other keys, and get those over the keys of all
};

// Memory for one call, where the tensors are; null when there is none left.
using Allocate = std::function<void*(size_t bytes)>;

// Both return what went wrong, or an empty string; the CPU when done, the GPU when its kernels are on the stream.
using CallCpu = std::string(const Call& call, const Parallel& parallel, const Allocate& allocate);
using CallGpu = std::string(const Call& call, void* stream, const Allocate& allocate);

}  // namespace blocksparse
