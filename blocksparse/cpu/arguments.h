// What every call has to fulfil, on the CPU, on a GPU and under XLA alike.
#pragma once

#include <algorithm>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "attention.h"
#include "tensorflow/core/framework/tensor.h"

namespace blocksparse {

// A GPU machine makes no such graphs, but can be handed one.
constexpr char kCannotHide[] =
    "attention that looks ahead, traced without knowing its time on a machine without a GPU, cannot run on one: trace "
    "it "
    "there, or give it the time";

inline absl::Status expect(const char* name, const tensorflow::TensorShape& shape,
                           const tensorflow::TensorShape& wanted) {
  if (shape == wanted) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, " has shape ", shape.DebugString(), "; it has to be ", wanted.DebugString()));
}

// [batch, time, width] with any time up to the plan's.
inline absl::Status expect_rows(const char* name, const tensorflow::TensorShape& shape, int64_t batch, int64_t most,
                                int64_t width) {
  const int64_t time = shape.dims() == 3 ? std::min(shape.dim_size(1), most) : most;
  return expect(name, shape, {batch, time, width});
}

inline absl::Status expect_width(const char* name, int64_t width, int64_t heads) {
  if (width > 0 && width % heads == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, " is ", width, " wide; its width has to be a multiple of the ", heads, " heads"));
}

// segment_sides: so many inputs hold segment numbers.
inline absl::Status expect_sides(int32_t segment_sides) {
  if (segment_sides == 0 || segment_sides == 2) return absl::OkStatus();
  return absl::InvalidArgumentError("segments have to be none, or those of queries and of keys");
}

struct Arguments {
  Plan plan;
  Shape shape;

  // Checks the plan and fits q, k and v to it.
  absl::Status read(const tensorflow::Tensor& blob, const tensorflow::TensorShape& q, const tensorflow::TensorShape& k,
                    const tensorflow::TensorShape& v, int32_t heads, int32_t kv_heads, float scale) {
    if (blob.dims() != 1) return absl::InvalidArgumentError("plan has to be a vector");
    const std::string error = read_plan(blob.flat<int32_t>().data(), blob.NumElements(), &plan);
    if (!error.empty()) return absl::InvalidArgumentError(error);
    return fit(q, k, v, heads, kv_heads, scale);
  }

  // Fits q, k and v to `plan`. kv_heads: the op's attribute, 0 where it is `heads`.
  absl::Status fit(const tensorflow::TensorShape& q, const tensorflow::TensorShape& k, const tensorflow::TensorShape& v,
                   int32_t heads, int32_t kv_heads, float scale) {
    if (plan.heads != heads) {
      return absl::InvalidArgumentError(absl::StrCat("heads is ", heads, " but the plan has ", plan.heads));
    }
    if (plan.key_heads != (kv_heads == 0 ? heads : kv_heads)) {
      return absl::InvalidArgumentError(absl::StrCat("kv_heads is ", kv_heads, " but the plan has ", plan.key_heads));
    }
    if (q.dims() != 3 || v.dims() != 3) return absl::InvalidArgumentError("q, k and v have to be [batch, time, width]");
    const int32_t key_heads = plan.key_heads;
    TF_RETURN_IF_ERROR(expect_width("q", q.dim_size(2), heads));
    TF_RETURN_IF_ERROR(expect_width("v", v.dim_size(2), key_heads));
    shape = {q.dim_size(0),
             heads,
             int32_t(q.dim_size(2) / heads),
             int32_t(v.dim_size(2) / key_heads),
             scale,
             int32_t(q.dim_size(1)),
             int32_t(k.dims() == 3 ? k.dim_size(1) : 0)};
    TF_RETURN_IF_ERROR(expect_rows("q", q, q.dim_size(0), plan.query_time, q.dim_size(2)));
    TF_RETURN_IF_ERROR(expect_rows("k", k, q.dim_size(0), plan.key_time, int64_t{key_heads} * shape.head_dim));
    TF_RETURN_IF_ERROR(expect("v", v, {q.dim_size(0), k.dim_size(1), v.dim_size(2)}));
    return absl::OkStatus();
  }

  // The segment numbers of queries and keys.
  absl::Status check_segments(const tensorflow::TensorShape& query, const tensorflow::TensorShape& key) const {
    TF_RETURN_IF_ERROR(expect("the queries' segments", query, {shape.batch, shape.query_time}));
    return expect("the keys' segments", key, {shape.batch, shape.key_time});
  }

  // The gradient's further inputs.
  absl::Status check_gradient(const tensorflow::TensorShape& out, const tensorflow::TensorShape& lse,
                              const tensorflow::TensorShape& dout, const tensorflow::TensorShape& dlse) const {
    TF_RETURN_IF_ERROR(expect("out", out, out_shape()));
    TF_RETURN_IF_ERROR(expect("lse", lse, lse_shape()));
    TF_RETURN_IF_ERROR(expect("dout", dout, out_shape()));
    return expect("dlse", dlse, lse_shape());
  }

  tensorflow::TensorShape out_shape() const {
    return {shape.batch, shape.query_time, int64_t{shape.heads} * shape.value_dim};
  }
  tensorflow::TensorShape lse_shape() const { return {shape.batch, shape.heads, shape.query_time}; }
};

}  // namespace blocksparse
