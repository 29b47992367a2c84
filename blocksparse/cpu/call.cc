// Runs a call of the XLA library; Python hands it the address.
#include "call.h"

#include <cstring>

#include "Eigen/Core"

namespace blocksparse {
namespace {

template <typename T>
void run(const Call& call, const Plan& plan, const Parallel& parallel, float* workspace) {
  const auto in = [](const void* data) { return static_cast<const T*>(data); };
  const auto real = [](const void* data) { return static_cast<const float*>(data); };
  const auto out = [](const void* data) { return static_cast<T*>(const_cast<void*>(data)); };
  const Inputs<T> inputs = {in(call.q), in(call.k), in(call.v), call.query_segments, call.key_segments};
  if (!call.backward) {
    auto* lse = static_cast<float*>(const_cast<void*>(call.lse));
    attention_forward(call.shape, plan, inputs, out(call.out), lse, call.onto, parallel);
    return;
  }
  const Gradient<T> gradient = {in(call.out), in(call.dout), real(call.lse), real(call.dlse),
                                out(call.dq), out(call.dk),  out(call.dv)};
  attention_backward(call.shape, plan, inputs, gradient, call.onto, workspace, parallel);
}

}  // namespace
}  // namespace blocksparse

extern "C" std::string blocksparse_call_cpu(const blocksparse::Call& call, const blocksparse::Parallel& parallel,
                                            const blocksparse::Allocate& allocate) {
  using namespace blocksparse;
  Plan plan;
  const std::string error = read_plan(static_cast<const int32_t*>(call.plan), call.plan_size, &plan);
  if (!error.empty()) return error;
  if (std::memcmp(call.header, call.plan, kHeaderWords * sizeof(int32_t)) != 0) {
    return "the plan is not the one that the call was compiled for";
  }
  float* workspace = nullptr;
  if (call.backward) {
    const size_t bytes = sizeof(float) * backward_workspace(call.shape, plan);
    workspace = static_cast<float*>(allocate(bytes));
    if (workspace == nullptr && bytes > 0) return "no memory for " + std::to_string(bytes) + " bytes of workspace";
  }
  const std::string dtype = call.dtype;
  if (dtype == "f16")
    run<Eigen::half>(call, plan, parallel, workspace);
  else if (dtype == "bf16")
    run<Eigen::bfloat16>(call, plan, parallel, workspace);
  else
    run<float>(call, plan, parallel, workspace);
  return "";
}
