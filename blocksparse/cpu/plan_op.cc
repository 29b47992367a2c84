// A plan too large for a constant (a graph is one protocol buffer of at most 2 GB): an attribute holds it compressed,
// and the kernel unpacks it once.
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/lib/io/inputstream_interface.h"
#include "tensorflow/core/lib/io/zlib_compression_options.h"
#include "tensorflow/core/lib/io/zlib_inputstream.h"

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

class MemoryStream : public tensorflow::io::InputStreamInterface {
 public:
  explicit MemoryStream(const std::string& data) : data_(data) {}

  absl::Status ReadNBytes(int64_t bytes, tensorflow::tstring* result) override {
    const int64_t left = data_.size() - position_, read = std::min(bytes, left);
    result->assign(data_.data() + position_, read);
    position_ += read;
    return read == bytes ? absl::OkStatus() : absl::OutOfRangeError("end of the compressed plan");
  }
  int64_t Tell() const override { return position_; }
  absl::Status Reset() override {
    position_ = 0;
    return absl::OkStatus();
  }

 private:
  const std::string& data_;
  int64_t position_ = 0;
};

class PlanKernel : public tensorflow::OpKernel {
 public:
  explicit PlanKernel(tensorflow::OpKernelConstruction* context) : OpKernel(context) {
    std::string data;
    int64_t length;
    OP_REQUIRES_OK(context, context->GetAttr("data", &data));
    OP_REQUIRES_OK(context, context->GetAttr("length", &length));
    constexpr size_t kBuffer = 1 << 20;
    MemoryStream compressed(data);
    const auto options = tensorflow::io::ZlibCompressionOptions::DEFAULT();
    tensorflow::io::ZlibInputStream stream(&compressed, kBuffer, kBuffer, options);
    tensorflow::tstring bytes;
    OP_REQUIRES_OK(context, stream.ReadNBytes(length * sizeof(int32_t), &bytes));
    plan_ = tensorflow::Tensor(tensorflow::DT_INT32, {length});
    std::memcpy(plan_.flat<int32_t>().data(), bytes.data(), bytes.size());
  }

  void Compute(tensorflow::OpKernelContext* context) override { context->set_output(0, plan_); }

 private:
  tensorflow::Tensor plan_;
};

REGISTER_KERNEL_BUILDER(Name("BlocksparsePlan").Device(tensorflow::DEVICE_CPU), PlanKernel);
REGISTER_KERNEL_BUILDER(Name("BlocksparsePlan").Device(tensorflow::DEVICE_GPU).HostMemory("plan"), PlanKernel);

}  // namespace
}  // namespace blocksparse
