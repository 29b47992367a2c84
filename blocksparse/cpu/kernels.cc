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
    OP_REQUIRES_OK(context, context->GetAttr("scale", &scale_));
  }

 protected:
  absl::Status read(OpKernelContext* context, int plan_input, Arguments* arguments) const {
    const auto shape = [context](int input) -> const TensorShape& { return context->input(input).shape(); };
    return arguments->read(context->input(plan_input), shape(0), shape(1), shape(2), heads_, scale_);
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
  int32_t heads_;
  float scale_;
};

template <typename T>
const T* input(OpKernelContext* context, int index) {
  return context->input(index).flat<T>().data();
}

template <typename T>
class ForwardKernel : public AttentionKernel {
 public:
  using AttentionKernel::AttentionKernel;

  void Compute(OpKernelContext* context) override {
    Arguments arguments;
    OP_REQUIRES_OK(context, read(context, /*plan_input=*/3, &arguments));
    Tensor *out, *lse;
    OP_REQUIRES_OK(context, context->allocate_output(0, arguments.out_shape(), &out));
    OP_REQUIRES_OK(context, context->allocate_output(1, arguments.lse_shape(), &lse));
    const Inputs<T> in = {input<T>(context, 0), input<T>(context, 1), input<T>(context, 2)};
    attention_forward(arguments.shape, arguments.plan, in, out->flat<T>().data(), lse->flat<float>().data(),
                      threads(context));
  }
};

template <typename T>
class BackwardKernel : public AttentionKernel {
 public:
  using AttentionKernel::AttentionKernel;

  void Compute(OpKernelContext* context) override {
    Arguments arguments;
    OP_REQUIRES_OK(context, read(context, /*plan_input=*/7, &arguments));
    const auto shape = [context](int input) -> const TensorShape& { return context->input(input).shape(); };
    OP_REQUIRES_OK(context, arguments.check_gradient(shape(3), shape(4), shape(5), shape(6)));
    Tensor* d[3];
    for (int i : {0, 1, 2}) OP_REQUIRES_OK(context, context->allocate_output(i, shape(i), &d[i]));
    Tensor workspace;
    const int64_t size = backward_workspace(arguments.shape, arguments.plan);
    OP_REQUIRES_OK(context, context->allocate_temp(tensorflow::DT_FLOAT, {size}, &workspace));
    const Inputs<T> in = {input<T>(context, 0), input<T>(context, 1), input<T>(context, 2)};
    const Gradient<T> gradient = {input<T>(context, 3),     input<T>(context, 5),      input<float>(context, 4),
                                  input<float>(context, 6), d[0]->flat<T>().data(), d[1]->flat<T>().data(),
                                  d[2]->flat<T>().data()};
    attention_backward(arguments.shape, arguments.plan, in, gradient, workspace.flat<float>().data(), threads(context));
  }
};

#define REGISTER(T)                                                                                                    \
  REGISTER_KERNEL_BUILDER(Name("BlocksparseAttention").Device(tensorflow::DEVICE_CPU).TypeConstraint<T>("T"),          \
                          ForwardKernel<T>);                                                                           \
  REGISTER_KERNEL_BUILDER(Name("BlocksparseAttentionGrad").Device(tensorflow::DEVICE_CPU).TypeConstraint<T>("T"),      \
                          BackwardKernel<T>);
REGISTER(float)
REGISTER(Eigen::half)
REGISTER(Eigen::bfloat16)
#undef REGISTER

}  // namespace
}  // namespace blocksparse
