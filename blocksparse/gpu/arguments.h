// The checks every call of BlocksparseAttention and BlocksparseAttentionGrad passes, on any device.
#pragma once

#include <string>

#include "../cpu/attention.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "tensorflow/core/framework/op_kernel.h"

namespace blocksparse {

struct Arguments {
  Shape shape;
  Plan plan;
};

// Reads the shapes of q, k, v (inputs 0 to 2) and the plan (the last input), which must fit each other.
inline absl::StatusOr<Arguments> read_arguments(tensorflow::OpKernelContext* context, int heads, float scale) {
  const auto &q = context->input(0), &k = context->input(1), &v = context->input(2);
  const auto& blob = context->input(context->num_inputs() - 1);
  const std::string shapes = absl::StrCat("q ", q.shape().DebugString(), ", k ", k.shape().DebugString(), ", v ",
                                          v.shape().DebugString(), ", heads ", heads, ": ");
  const auto refuse = [&](const auto&... why) {
    return absl::InvalidArgumentError(absl::StrCat("BlocksparseAttention: ", shapes, why...));
  };
  if (q.dims() != 3 || k.dims() != 3 || v.dims() != 3) return refuse("q, k and v have to be [batch, time, width]");
  if (k.dim_size(0) != q.dim_size(0) || v.dim_size(0) != q.dim_size(0)) return refuse("their batches differ");
  if (k.dim_size(2) != q.dim_size(2)) return refuse("q and k differ in width");
  if (v.dim_size(1) != k.dim_size(1)) return refuse("k and v differ in time");
  if (heads < 1 || q.dim_size(2) % heads || v.dim_size(2) % heads) return refuse("heads do not divide the widths");
  Arguments read{{q.dim_size(0), heads, int32_t(q.dim_size(2) / heads), int32_t(v.dim_size(2) / heads), scale}, {}};
  for (int32_t dim : {read.shape.head_dim, read.shape.value_dim}) {
    if (dim < 8 || dim > 256 || dim % 8) return refuse("a head's width is ", dim, ", not a multiple of 8 up to 256");
  }
  if (blob.dims() != 1) return refuse("the plan has to be a vector");
  const std::string error = read_plan(blob.vec<int32_t>().data(), blob.NumElements(), &read.plan);
  if (!error.empty()) return refuse(error);
  if (read.plan.query_time != q.dim_size(1) || read.plan.key_time != k.dim_size(1) || read.plan.heads != heads) {
    return refuse("the plan is for times ", read.plan.query_time, " x ", read.plan.key_time, " and ", read.plan.heads,
                  " heads");
  }
  return read;
}

// The gradient's further inputs: out, lse, dout, dlse (3 to 6).
inline absl::Status check_gradient(tensorflow::OpKernelContext* context, const Arguments& arguments) {
  const auto &q = context->input(0), &v = context->input(2);
  const tensorflow::TensorShape out = {q.dim_size(0), q.dim_size(1), v.dim_size(2)};
  const tensorflow::TensorShape rows = {q.dim_size(0), arguments.shape.heads, q.dim_size(1)};
  constexpr const char* kNames[] = {"out", "lse", "dout", "dlse"};
  for (int i = 0; i < 4; ++i) {
    const tensorflow::TensorShape &shape = context->input(3 + i).shape(), &wanted = i % 2 ? rows : out;
    if (shape != wanted) {
      return absl::InvalidArgumentError(absl::StrCat("BlocksparseAttentionGrad: ", kNames[i], " is ",
                                                     shape.DebugString(), ", wanted ", wanted.DebugString()));
    }
  }
  return absl::OkStatus();
}

}  // namespace blocksparse
