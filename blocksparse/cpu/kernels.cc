// Binds the mathematics to TensorFlow's CPU device: checks every call, allocates, lends its threads.
#include "arguments.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/lib/core/threadpool.h"

namespace blocksparse {
namespace {

using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;

class AttentionKernel : public tensorflow::OpKernel {
 public:
  explicit AttentionKernel(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("heads", &heads_));
    OP_REQUIRES_OK(context, context->GetAttr("kv_heads", &kv_heads_));
    OP_REQUIRES_OK(context, context->GetAttr("scale", &scale_));
    OP_REQUIRES_OK(context, context->GetAttr("segment_sides", &segment_sides_));
    OP_REQUIRES_OK(context, expect_sides(segment_sides_));
  }

 protected:
  // The arguments of each pass: inputs from `first_plan` on are plans, then segment numbers.
  absl::Status read(OpKernelContext* context, int first_plan, std::vector<Arguments>* passes) const {
    const auto shape = [context](int input) -> const TensorShape& { return context->input(input).shape(); };
    const int first_segments = context->num_inputs() - segment_sides_;
    for (int input = first_plan; input < first_segments; ++input) {
      passes->emplace_back();
      const absl::Status status =
          passes->back().read(context->input(input), shape(0), shape(1), shape(2), heads_, kv_heads_, scale_);
      TF_RETURN_IF_ERROR(status);
    }
    if (segment_sides_ == 0) return absl::OkStatus();
    return passes->front().check_segments(shape(first_segments), shape(first_segments + 1));
  }

  template <typename T>
  Inputs<T> inputs(OpKernelContext* context) const {
    const auto numbers = [&](int side) {
      if (segment_sides_ == 0) return static_cast<const int32_t*>(nullptr);
      return input<int32_t>(context, context->num_inputs() - segment_sides_ + side);
    };
    return {input<T>(context, 0), input<T>(context, 1), input<T>(context, 2), numbers(0), numbers(1)};
  }

  template <typename T>
  static const T* input(OpKernelContext* context, int index) {
    return context->input(index).flat<T>().data();
  }

  static Parallel threads(OpKernelContext* context) {
    const auto* workers = context->device()->tensorflow_cpu_worker_threads();
    return {workers->num_threads, [workers](int64_t count, const std::function<void(int64_t, int64_t)>& body) {
              using Pool = tensorflow::thread::ThreadPool;
              workers->workers->ParallelFor(
                  count, Pool::SchedulingParams(Pool::SchedulingStrategy::kFixedBlockSize, std::nullopt, 1), body);
            }};
  }

 private:
  int32_t heads_, kv_heads_, segment_sides_;
  float scale_;
};

template <typename T>
class ForwardKernel : public AttentionKernel {
 public:
  using AttentionKernel::AttentionKernel;

  void Compute(OpKernelContext* context) override {
    std::vector<Arguments> passes;
    OP_REQUIRES_OK(context, read(context, /*first_plan=*/3, &passes));
    Tensor *out, *lse;
    OP_REQUIRES_OK(context, context->allocate_output(0, passes[0].out_shape(), &out));
    OP_REQUIRES_OK(context, context->allocate_output(1, passes[0].lse_shape(), &lse));
    const Inputs<T> in = inputs<T>(context);
    for (size_t pass = 0; pass < passes.size(); ++pass) {
      attention_forward(passes[pass].shape, passes[pass].plan, in, out->flat<T>().data(), lse->flat<float>().data(),
                        /*onto=*/pass > 0, threads(context));
    }
  }
};

template <typename T>
class BackwardKernel : public AttentionKernel {
 public:
  using AttentionKernel::AttentionKernel;

  void Compute(OpKernelContext* context) override {
    std::vector<Arguments> passes;
    OP_REQUIRES_OK(context, read(context, /*first_plan=*/7, &passes));
    const auto shape = [context](int input) -> const TensorShape& { return context->input(input).shape(); };
    OP_REQUIRES_OK(context, passes[0].check_gradient(shape(3), shape(4), shape(5), shape(6)));
    Tensor* d[3];
    for (int i : {0, 1, 2}) OP_REQUIRES_OK(context, context->allocate_output(i, shape(i), &d[i]));
    Tensor workspace;
    int64_t size = 0;
    for (const Arguments& pass : passes) size = std::max(size, backward_workspace(pass.shape, pass.plan));
    OP_REQUIRES_OK(context, context->allocate_temp(tensorflow::DT_FLOAT, {size}, &workspace));
    const Inputs<T> in = inputs<T>(context);
    const Gradient<T> gradient = {input<T>(context, 3),     input<T>(context, 5),   input<float>(context, 4),
                                  input<float>(context, 6), d[0]->flat<T>().data(), d[1]->flat<T>().data(),
                                  d[2]->flat<T>().data()};
    for (size_t pass = 0; pass < passes.size(); ++pass) {
      attention_backward(passes[pass].shape, passes[pass].plan, in, gradient, /*onto=*/pass > 0,
                         workspace.flat<float>().data(), threads(context));
    }
  }
};

#define REGISTER_ONE(op, Kernel, T) \
  REGISTER_KERNEL_BUILDER(Name(op).Device(tensorflow::DEVICE_CPU).TypeConstraint<T>("T"), Kernel<T>);
#define REGISTER(T)                                            \
  REGISTER_ONE("BlocksparseAttention", ForwardKernel, T)       \
  REGISTER_ONE("BlocksparseAttentionGrad", BackwardKernel, T)  \
  REGISTER_ONE("BlocksparseJoinedAttention", ForwardKernel, T) \
  REGISTER_ONE("BlocksparseJoinedAttentionGrad", BackwardKernel, T)
REGISTER(float)
REGISTER(Eigen::half)
REGISTER(Eigen::bfloat16)
#undef REGISTER
#undef REGISTER_ONE

}  // namespace
}  // namespace blocksparse
