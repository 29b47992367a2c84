// Attention and its gradient on a GPU, of one pass or several: checks, outputs, then the launcher.
#include <type_traits>

#include "../../cpu/arguments.h"
#include "launcher.h"
#include "plan_cache.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/platform/tensor_float_32_utils.h"
#include "xla/stream_executor/stream.h"

namespace blocksparse::gpu {
namespace {

using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;

template <typename T>
const char* dtype_name() {
  if (std::is_same_v<T, Eigen::half>) return "f16";
  if (std::is_same_v<T, Eigen::bfloat16>) return "bf16";
  return tensorflow::tensor_float_32_execution_enabled() ? "tf32" : "f32";
}

template <typename T, bool backward>
class AttentionGpu : public tensorflow::OpKernel {
 public:
  explicit AttentionGpu(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("heads", &heads_));
    OP_REQUIRES_OK(context, context->GetAttr("kv_heads", &kv_heads_));
    OP_REQUIRES_OK(context, context->GetAttr("scale", &scale_));
    if (!backward) OP_REQUIRES_OK(context, context->GetAttr("hides", &hides_));
    OP_REQUIRES_OK(context, context->GetAttr("segment_sides", &segment_sides_));
    OP_REQUIRES_OK(context, expect_sides(segment_sides_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor &q = context->input(0), &k = context->input(1), &v = context->input(2);
    constexpr int first_plan = backward ? 7 : 3;
    const int first_segments = context->num_inputs() - segment_sides_;
    void* stream = context->op_device_context()->stream()->platform_specific_handle().stream;
    std::vector<std::shared_ptr<const DevicePlan>> passes;
    Arguments arguments;  // all passes have the same, save for the plan
    for (int input = first_plan; input < first_segments; ++input) {
      const Tensor& plan = context->input(input);
      OP_REQUIRES(context, plan.dims() == 1, absl::InvalidArgumentError("plan has to be a vector"));
      auto device_plan = PlanCache::global().get(context, plan, stream);
      OP_REQUIRES_OK(context, device_plan.status());
      passes.push_back(*device_plan);
      arguments = Arguments{(*device_plan)->plan};
      OP_REQUIRES_OK(context, arguments.fit(q.shape(), k.shape(), v.shape(), heads_, kv_heads_, scale_));
    }
    Call call{backward, dtype_name<T>(), arguments.shape};
    OP_REQUIRES(context, !hides_ || segment_sides_ != 0, absl::UnimplementedError(kCannotHide));
    call.q = q.data(), call.k = k.data(), call.v = v.data();
    if (segment_sides_ != 0) {
      const Tensor &query = context->input(first_segments), &key = context->input(first_segments + 1);
      OP_REQUIRES_OK(context, arguments.check_segments(query.shape(), key.shape()));
      call.query_segments = query.flat<int32_t>().data(), call.key_segments = key.flat<int32_t>().data();
    }
    if constexpr (backward) {
      const auto shape = [context](int input) { return context->input(input).shape(); };
      OP_REQUIRES_OK(context, arguments.check_gradient(shape(3), shape(4), shape(5), shape(6)));
      call.out = context->input(3).data(), call.lse = context->input(4).data();
      call.dout = context->input(5).data(), call.dlse = context->input(6).data();
      void** gradients[] = {&call.dq, &call.dk, &call.dv};
      for (int i : {0, 1, 2}) OP_REQUIRES_OK(context, allocate(context, i, shape(i), gradients[i]));
    } else {
      void *out, *lse;
      OP_REQUIRES_OK(context, allocate(context, 0, arguments.out_shape(), &out));
      OP_REQUIRES_OK(context, allocate(context, 1, arguments.lse_shape(), &lse));
      call.out = out, call.lse = lse;
    }
    if (arguments.shape.batch == 0) return;
    for (size_t pass = 0; pass < passes.size(); ++pass) {
      call.onto = pass > 0;
      OP_REQUIRES_OK(context, run_pass(context, *passes[pass], stream, &call));
    }
  }

 private:
  static absl::Status run_pass(OpKernelContext* context, const DevicePlan& plan, void* stream, Call* call) {
    call->header = plan.header.data();
    call->orders = plan.orders;
    call->plan = plan.blob.data();
    call->plan_size = plan.host.NumElements();
    std::vector<Tensor> temps;  // released to the allocator at return: it reuses memory in the stream's order
    return run(*call, stream, [&](size_t bytes) -> void* {
      temps.emplace_back();
      const tensorflow::TensorShape shape{static_cast<int64_t>(bytes)};
      if (!context->allocate_temp(tensorflow::DT_UINT8, shape, &temps.back()).ok()) return nullptr;
      return temps.back().data();
    });
  }

  static absl::Status allocate(OpKernelContext* context, int index, const tensorflow::TensorShape& shape, void** data) {
    Tensor* output;
    absl::Status status = context->allocate_output(index, shape, &output);
    if (status.ok()) *data = output->data();
    return status;
  }

  int heads_, kv_heads_, segment_sides_;
  float scale_;
  bool hides_ = false;
};

#define REGISTER_ONE(op, plans, backward, T)                                                                \
  REGISTER_KERNEL_BUILDER(Name(op).Device(tensorflow::DEVICE_GPU).HostMemory(plans).TypeConstraint<T>("T"), \
                          AttentionGpu<T, backward>);
#define REGISTER(T)                                             \
  REGISTER_ONE("BlocksparseAttention", "plan", false, T)        \
  REGISTER_ONE("BlocksparseAttentionGrad", "plan", true, T)     \
  REGISTER_ONE("BlocksparseJoinedAttention", "plans", false, T) \
  REGISTER_ONE("BlocksparseJoinedAttentionGrad", "plans", true, T)
REGISTER(Eigen::half)
REGISTER(Eigen::bfloat16)
REGISTER(float)
#undef REGISTER
#undef REGISTER_ONE

}  // namespace
}  // namespace blocksparse::gpu
