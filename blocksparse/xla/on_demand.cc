// The ops as XLA knows them from the moment TensorFlow does. A graph traced long before, or on another machine, may be
// handed to XLA at any time, and by then it is too late to register anything: TensorFlow remembers what it found. So
// the registration stands here, beside the ops, and the kernels, whose headers take half a minute to compile, are built
// or loaded when XLA first makes one.
#include "on_demand.h"

#include <atomic>
#include <set>
#include <string>

#if __has_include("xla/ffi/api/ffi.h")  // else this TensorFlow cannot compile the XLA library (libraries.py)
#include "absl/strings/match.h"
#include "tensorflow/compiler/tf2xla/xla_op_registry.h"
#include "tensorflow/core/framework/kernel_def_builder.h"

namespace blocksparse {
namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;

std::atomic<LoadXla*> load_xla{nullptr};

OpKernel* make_kernel(OpKernelConstruction* context) {
  char error[2000] = "import blocksparse first: it loads the kernels for XLA";
  LoadXla* load = load_xla;
  MakeXlaKernel* make = load == nullptr ? nullptr : load(error, sizeof(error));
  if (make != nullptr) return make(context);
  context->CtxFailure(
      absl::FailedPreconditionError(absl::StrCat("block-sparse attention cannot be compiled by XLA here: ", error)));
  return nullptr;
}

// TensorFlow makes kernels of all XLA registrations when something is first compiled, and never again: an op that comes
// later registers its kernels itself, for the devices that any other op has got one for.
void register_late(const char* op, const char* constant) {
  std::set<std::string> devices;
  const tensorflow::KernelList others = tensorflow::GetRegisteredKernelsForOp("AddV2");
  for (const tensorflow::KernelDef& kernel : others.kernel()) {
    if (absl::EndsWith(kernel.device_type(), "_JIT")) devices.insert(kernel.device_type());
  }
  for (const std::string& device : devices) {
    auto* kernel = tensorflow::KernelDefBuilder(op).Device(device.c_str()).HostMemory(constant).Build();
    tensorflow::kernel_factory::OpKernelRegistrar(kernel, op, make_kernel);
  }
}

bool register_op(const char* op, const char* plan) {
  auto builder = tensorflow::XlaOpRegistrationBuilder::Name(op);
  tensorflow::XlaOpRegistrar(builder.CompileTimeConstantInput(plan).Build(make_kernel));
  register_late(op, plan);
  return true;
}

bool register_plan() {
  tensorflow::XlaOpRegistrar(tensorflow::XlaOpRegistrationBuilder::Name("BlocksparsePlan").Build(make_kernel));
  register_late("BlocksparsePlan", "plan");
  return true;
}

[[maybe_unused]] const bool registered = register_op("BlocksparseAttention", "plan") &&
                                         register_op("BlocksparseAttentionGrad", "plan") &&
                                         register_op("BlocksparseJoinedAttention", "plans") &&
                                         register_op("BlocksparseJoinedAttentionGrad", "plans") && register_plan();

}  // namespace
}  // namespace blocksparse

extern "C" void blocksparse_xla_on_demand(blocksparse::LoadXla* load) { blocksparse::load_xla = load; }
#else
extern "C" void blocksparse_xla_on_demand(blocksparse::LoadXla*) {}
#endif
