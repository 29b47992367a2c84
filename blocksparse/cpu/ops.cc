// The op contract: names, types and shapes. Kernels for each device register themselves against it.
#include "arguments.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace blocksparse {
namespace {

using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

// Inputs from `first_plan` on are plans, then segment numbers. Fits q [batch, query_time, heads * head_dim], k [batch,
// key_time, kv_heads * head_dim], v [batch, key_time, kv_heads * value_dim], each plan [size] and the segment numbers
// [batch, query_time] and [batch, key_time] together and gives the shapes of out, lse.
absl::Status attention_shapes(InferenceContext* c, int first_plan, ShapeHandle* out, ShapeHandle* lse) {
  ShapeHandle q, k, v, plan;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 3, &q));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 3, &k));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(2), 3, &v));
  int32_t sides;
  TF_RETURN_IF_ERROR(c->GetAttr("segment_sides", &sides));
  TF_RETURN_IF_ERROR(expect_sides(sides));
  const int first_segments = c->num_inputs() - sides;
  for (int i = first_plan; i < first_segments; ++i) TF_RETURN_IF_ERROR(c->WithRank(c->input(i), 1, &plan));
  DimensionHandle batch, width, key_time, head_dim, value_dim, out_width = c->Dim(v, 2);
  TF_RETURN_IF_ERROR(c->Merge(c->Dim(q, 0), c->Dim(k, 0), &batch));
  TF_RETURN_IF_ERROR(c->Merge(batch, c->Dim(v, 0), &batch));
  TF_RETURN_IF_ERROR(c->Merge(c->Dim(k, 1), c->Dim(v, 1), &key_time));
  if (sides != 0) {
    ShapeHandle merged;
    const ShapeHandle queries = c->MakeShape({batch, c->Dim(q, 1)}), keys = c->MakeShape({batch, key_time});
    TF_RETURN_IF_ERROR(c->Merge(c->input(first_segments), queries, &merged));
    TF_RETURN_IF_ERROR(c->Merge(c->input(first_segments + 1), keys, &merged));
  }
  int32_t heads, kv_heads;
  TF_RETURN_IF_ERROR(c->GetAttr("heads", &heads));
  TF_RETURN_IF_ERROR(c->GetAttr("kv_heads", &kv_heads));
  if (kv_heads == 0 || kv_heads == heads) {
    TF_RETURN_IF_ERROR(c->Merge(c->Dim(q, 2), c->Dim(k, 2), &width));
    TF_RETURN_IF_ERROR(c->Divide(width, heads, /*evenly_divisible=*/true, &head_dim));
    TF_RETURN_IF_ERROR(c->Divide(out_width, heads, /*evenly_divisible=*/true, &value_dim));
  } else {
    TF_RETURN_IF_ERROR(c->Divide(c->Dim(q, 2), heads, /*evenly_divisible=*/true, &head_dim));
    TF_RETURN_IF_ERROR(c->Multiply(head_dim, kv_heads, &width));
    TF_RETURN_IF_ERROR(c->Merge(width, c->Dim(k, 2), &width));
    TF_RETURN_IF_ERROR(c->Divide(c->Dim(v, 2), kv_heads, /*evenly_divisible=*/true, &value_dim));
    TF_RETURN_IF_ERROR(c->Multiply(value_dim, heads, &out_width));
  }
  *out = c->MakeShape({batch, c->Dim(q, 1), out_width});
  *lse = c->MakeShape({batch, c->MakeDim(heads), c->Dim(q, 1)});
  return absl::OkStatus();
}

absl::Status forward_shapes(InferenceContext* c) {
  ShapeHandle out, lse;
  TF_RETURN_IF_ERROR(attention_shapes(c, /*first_plan=*/3, &out, &lse));
  c->set_output(0, out);
  c->set_output(1, lse);
  return absl::OkStatus();
}

absl::Status backward_shapes(InferenceContext* c) {
  ShapeHandle out, lse, merged;
  TF_RETURN_IF_ERROR(attention_shapes(c, /*first_plan=*/7, &out, &lse));
  for (int input : {3, 5}) TF_RETURN_IF_ERROR(c->Merge(c->input(input), out, &merged));
  for (int input : {4, 6}) TF_RETURN_IF_ERROR(c->Merge(c->input(input), lse, &merged));
  for (int input : {0, 1, 2}) c->set_output(input, c->input(input));
  return absl::OkStatus();
}

// hides: tensors may end before the plan does, and it shows queries keys behind their end: the kernel has to hide them.
// kv_heads: heads of k and v, a divisor of heads: query head h reads head h / (heads / kv_heads). 0: as many as heads.
REGISTER_OP("BlocksparseAttention")
    .Input("q: T")
    .Input("k: T")
    .Input("v: T")
    .Input("plan: int32")
    .Input("segments: segment_sides * int32")
    .Output("out: T")
    .Output("lse: float")
    .Attr("T: {half, bfloat16, float}")
    .Attr("heads: int >= 1")
    .Attr("scale: float")
    .Attr("hides: bool = false")
    .Attr("kv_heads: int >= 0 = 0")
    .Attr("segment_sides: int >= 0 = 0")
    .SetShapeFn(forward_shapes)
    .Doc(
        "out = softmax(scale * q k^T) v over the keys that the plan lets each query see; lse = log sum exp. "
        "segments: none, or the numbers of queries and of keys: a query then sees only keys of its own number, and "
        "none "
        "where that is negative.");

REGISTER_OP("BlocksparseAttentionGrad")
    .Input("q: T")
    .Input("k: T")
    .Input("v: T")
    .Input("out: T")
    .Input("lse: float")
    .Input("dout: T")
    .Input("dlse: float")
    .Input("plan: int32")
    .Input("segments: segment_sides * int32")
    .Output("dq: T")
    .Output("dk: T")
    .Output("dv: T")
    .Attr("T: {half, bfloat16, float}")
    .Attr("heads: int >= 1")
    .Attr("scale: float")
    .Attr("kv_heads: int >= 0 = 0")
    .Attr("segment_sides: int >= 0 = 0")
    .SetShapeFn(backward_shapes)
    .Doc("Gradients of BlocksparseAttention with respect to q, k and v, given those of out and lse.");

// The two below are of several passes in one softmax. They are ops of their own because SavedModels hold those above.
REGISTER_OP("BlocksparseJoinedAttention")
    .Input("q: T")
    .Input("k: T")
    .Input("v: T")
    .Input("plans: passes * int32")
    .Input("segments: segment_sides * int32")
    .Output("out: T")
    .Output("lse: float")
    .Attr("T: {half, bfloat16, float}")
    .Attr("passes: int >= 1")
    .Attr("heads: int >= 1")
    .Attr("scale: float")
    .Attr("hides: bool = false")
    .Attr("kv_heads: int >= 0 = 0")
    .Attr("segment_sides: int >= 0 = 0")
    .SetShapeFn(forward_shapes)
    .Doc("BlocksparseAttention over the keys of all plans, no two of which may show a query the same key.");

REGISTER_OP("BlocksparseJoinedAttentionGrad")
    .Input("q: T")
    .Input("k: T")
    .Input("v: T")
    .Input("out: T")
    .Input("lse: float")
    .Input("dout: T")
    .Input("dlse: float")
    .Input("plans: passes * int32")
    .Input("segments: segment_sides * int32")
    .Output("dq: T")
    .Output("dk: T")
    .Output("dv: T")
    .Attr("T: {half, bfloat16, float}")
    .Attr("passes: int >= 1")
    .Attr("heads: int >= 1")
    .Attr("scale: float")
    .Attr("kv_heads: int >= 0 = 0")
    .Attr("segment_sides: int >= 0 = 0")
    .SetShapeFn(backward_shapes)
    .Doc("Gradients of BlocksparseJoinedAttention with respect to q, k and v, given those of out and lse.");

}  // namespace
}  // namespace blocksparse
