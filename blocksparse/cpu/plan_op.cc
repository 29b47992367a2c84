// A plan too large for a constant (a graph is one protocol buffer of at most 2 GB): an attribute holds it compressed,
// and the kernel unpacks it once.
#include "compressed_plan.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace blocksparse {
namespace {

REGISTER_OP("BlocksparsePlan")
    .Output("plan: int32")
    .Attr("data: string")
    .Attr("length: int >= 0")
    .SetShapeFn([](tensorflow::shape_inference::InferenceContext* c) {
      int64_t length;
      TF_RETURN_IF_ERROR(c->GetAttr("length", &length));
      c->set_output(0, c->Vector(length));
      return absl::OkStatus();
    })
    .Doc("The int32 vector of `length` whose little-endian bytes, compressed by zlib, are `data`.");

class PlanKernel : public tensorflow::OpKernel {
 public:
  explicit PlanKernel(tensorflow::OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, unpack_plan(*context, &plan_));
  }

  void Compute(tensorflow::OpKernelContext* context) override { context->set_output(0, plan_); }

 private:
  tensorflow::Tensor plan_;
};

REGISTER_KERNEL_BUILDER(Name("BlocksparsePlan").Device(tensorflow::DEVICE_CPU), PlanKernel);
REGISTER_KERNEL_BUILDER(Name("BlocksparsePlan").Device(tensorflow::DEVICE_GPU).HostMemory("plan"), PlanKernel);

}  // namespace
}  // namespace blocksparse
