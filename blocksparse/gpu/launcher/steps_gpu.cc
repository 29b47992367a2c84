// Many decoding steps on a GPU in one operation: checks, variables, then one CUDA graph, run once a position.
#include <algorithm>
#include <memory>

#include "graph.h"
#include "kernel_cache.h"
#include "step_shape.h"
#include "steps.h"
#include "tensorflow/core/common_runtime/dma_helper.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/resource_mgr.h"
#include "tensorflow/core/framework/resource_var.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "xla/stream_executor/stream.h"

namespace blocksparse::gpu {
namespace {

using tensorflow::OpInputList;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::Var;

// steps tokens of every row. `key`: steps.py's, less -sm. norms, maps: those of the launches in order, layer by layer,
// each map weight [out, in] and bias; then those of the logits, which have no bias. caches: the variables of each
// layer, in turn; groups: which of the key's each is; of_layer: how many a layer has. tables: members, words, begins,
// places and ends of each group (kernels/steps describes them). int32 would pass through the host: they are bits of
// uint32.
REGISTER_OP("BlocksparseSteps")
    .Input("x: T")
    .Input("integers: uint32")
    .Input("reals: float")
    .Input("table: float")
    .Input("streams: float")
    .Input("norms: N * float")
    .Input("maps: M * T")
    .Input("caches: C * resource")
    .Input("tables: G * uint32")
    .Output("tokens: int32")
    .Attr("T: {half, bfloat16, float}")
    .Attr("N: int >= 3")
    .Attr("M: int >= 9")
    .Attr("C: int >= 1")
    .Attr("G: int >= 5")
    .Attr("key: string")
    .Attr("groups: list(int)")
    .Attr("of_layer: list(int)")
    .SetIsStateful()
    .SetShapeFn([](tensorflow::shape_inference::InferenceContext* context) {
      context->set_output(0, context->Matrix(context->UnknownDim(), context->Dim(context->input(0), 0)));
      return absl::OkStatus();
    });

constexpr int kEarly = 90;  // the compute capability from which a kernel may start before the one ahead has ended

absl::Status check_size(const Tensor& tensor, int64_t wanted, absl::string_view what) {
  if (tensor.NumElements() == wanted) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(what, " has shape ", tensor.shape().DebugString(), "; this key wants ", wanted, " numbers"));
}

// Device memory, in the order of a stream.
struct Copier {
  const Driver& driver;
  const GraphDriver& graphs;
  Handle stream;

  absl::Status copy(void* to, const void* from, size_t bytes) const {
    if (bytes == 0) return absl::OkStatus();
    return driver.check(
        graphs.copy(reinterpret_cast<DevicePointer>(to), reinterpret_cast<DevicePointer>(from), bytes, stream),
        "cuMemcpyDtoDAsync");
  }

  absl::Status zero(void* to, size_t bytes) const {
    return driver.check(driver.set_bytes(reinterpret_cast<DevicePointer>(to), 0, bytes, stream), "cuMemsetD8Async");
  }
};

// The caches' variables, locked for writing while the steps are put on the stream.
class Caches {
 public:
  absl::Status lock(OpKernelContext* context, const OpInputList& handles) {
    for (const Tensor& handle : handles) {
      tensorflow::core::RefCountPtr<Var> variable;
      absl::Status status =
          tensorflow::LookupResource(context, handle.scalar<tensorflow::ResourceHandle>()(), &variable);
      if (!status.ok()) return status;
      variables_.push_back(std::move(variable));
    }
    std::vector<tensorflow::mutex*> order;
    for (const auto& variable : variables_) order.push_back(variable->mu());
    std::sort(order.begin(), order.end());
    order.erase(std::unique(order.begin(), order.end()), order.end());
    for (tensorflow::mutex* mutex : order) locks_.push_back(std::make_unique<tensorflow::mutex_lock>(*mutex));
    return absl::OkStatus();
  }

  // The memory of one, which nobody else holds after this: a reader may still have what it was.
  absl::Status own(OpKernelContext* context, int index, const Copier& copier, const void** data) {
    Tensor* held = variables_[index]->tensor();
    if (!tensorflow::DMAHelper::buffer(held)->RefCountIsOne()) {
      Tensor copy;
      absl::Status status = context->allocate_temp(held->dtype(), held->shape(), &copy);
      if (status.ok()) status = copier.copy(copy.data(), held->data(), held->TotalBytes());
      if (!status.ok()) return status;
      *held = copy;
    }
    *data = held->data();
    return absl::OkStatus();
  }

  const Tensor& tensor(int index) { return *variables_[index]->tensor(); }

 private:
  std::vector<tensorflow::core::RefCountPtr<Var>> variables_;
  std::vector<std::unique_ptr<tensorflow::mutex_lock>> locks_;
};

template <typename T>
class StepsGpu : public tensorflow::OpKernel {
 public:
  explicit StepsGpu(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("key", &key_));
    OP_REQUIRES_OK(context, context->GetAttr("groups", &groups_));
    OP_REQUIRES_OK(context, context->GetAttr("of_layer", &of_layer_));
    OP_REQUIRES_OK(context, StepShape::parse(key_, &shape_));
  }

  void Compute(OpKernelContext* context) override {
    std::lock_guard<std::mutex> lock(mutex_);
    OP_REQUIRES_OK(context, check(context));
    Tensor* tokens;
    OP_REQUIRES_OK(context, context->allocate_output("tokens", {steps_, shape_.batch}, &tokens));
    if (steps_ > 0) OP_REQUIRES_OK(context, run(context, tokens));
  }

 private:
  absl::Status check(OpKernelContext* context) {
    const Tensor &x = context->input(0), &streams = context->input(4);
    OpInputList norms, maps, caches, tables;
    absl::Status status = context->input_list("norms", &norms);
    status.Update(context->input_list("maps", &maps));
    status.Update(context->input_list("caches", &caches));
    status.Update(context->input_list("tables", &tables));
    if (!status.ok()) return status;
    const int64_t layers = of_layer_.size(), groups = shape_.groups.size();
    int64_t count = 0;
    for (int each : of_layer_) count += each;
    for (int group : groups_) {
      if (group < 0 || group >= groups) return absl::InvalidArgumentError("groups names one that the key has not");
    }
    if (norms.size() != 2 * layers + 1 || maps.size() != 8 * layers + 1 || tables.size() != 5 * groups ||
        caches.size() != count || caches.size() != static_cast<int64_t>(groups_.size())) {
      return absl::InvalidArgumentError(absl::StrCat(layers, " layers and ", groups, " groups do not fit ",
                                                     norms.size(), " norms, ", maps.size(), " maps, ", caches.size(),
                                                     " caches and ", tables.size(), " tables"));
    }
    const int64_t stream = shape_.rows() * shape_.width;
    if (stream == 0 || streams.NumElements() % stream != 0 || streams.NumElements() == 0) {
      return absl::InvalidArgumentError("streams holds no whole number of positions");
    }
    steps_ = streams.NumElements() / stream - 1;
    status.Update(check_size(x, shape_.batch * shape_.width, "x"));
    status.Update(check_size(context->input(1), 3, "integers"));
    status.Update(check_size(context->input(2), 2, "reals"));
    status.Update(check_size(context->input(3), shape_.count * shape_.width, "table"));
    for (const Tensor& norm : norms) status.Update(check_size(norm, 2 * shape_.width + 1, "a norm"));
    status.Update(check_maps(maps));
    status.Update(check_tables(tables));
    return status;
  }

  absl::Status check_maps(const OpInputList& maps) const {
    const int64_t width = shape_.width, attended = shape_.heads * shape_.value;
    const int64_t sides[4][2] = {
        {width, shape_.qkv()}, {attended, width}, {width, shape_.hidden}, {shape_.hidden, width}};
    absl::Status status = check_size(maps[maps.size() - 1], width * shape_.count, "the weight of the logits");
    for (int i = 0; i + 1 < maps.size(); i += 2) {
      const auto& [in, out] = sides[i / 2 % 4];
      status.Update(check_size(maps[i], in * out, "a weight"));
      status.Update(check_size(maps[i + 1], out, "a bias"));
    }
    return status;
  }

  absl::Status check_tables(const OpInputList& tables) const {
    absl::Status status;
    for (size_t i = 0; i < shape_.groups.size(); ++i) {
      const StepGroup& group = shape_.groups[i];
      const int64_t rows = steps_ * shape_.rows(), members = rows * group.members;
      const int64_t sizes[] = {group.members, members * group.words, rows * group.words, members * group.places,
                               2 * members};
      for (int j = 0; j < 5; ++j) status.Update(check_size(tables[5 * i + j], sizes[j], "a table"));
    }
    return status;
  }

  absl::Status run(OpKernelContext* context, Tensor* tokens) {
    absl::StatusOr<const Driver*> driver = get_driver();
    if (!driver.ok()) return driver.status();
    absl::StatusOr<const GraphDriver*> functions = get_graph_driver();
    if (!functions.ok()) return functions.status();
    void* stream = context->op_device_context()->stream()->platform_specific_handle().stream;
    ContextScope scope(**driver, stream);
    if (!scope.status().ok()) return scope.status();
    absl::StatusOr<Device> device = KernelCache::global().device(**driver, scope.context());
    if (!device.ok()) return device.status();
    const std::string key = absl::StrCat(key_, "-sm", device->capability);
    auto kernels = KernelCache::global().get(**driver, scope.context(), key);
    if (!kernels.ok()) return kernels.status();
    const Copier copier{**driver, **functions, stream};
    StepArrays arrays;
    Caches caches;
    absl::Status status = allocate(context, (*kernels)->manifest, &arrays.shared);
    if (status.ok()) status = share(context, copier, &arrays);
    if (status.ok()) status = collect(context, copier, &caches, &arrays);
    if (!status.ok()) return status;
    auto nodes = step_nodes(**kernels, arrays);
    if (!nodes.ok()) return nodes.status();
    status = graph_.make(**driver, *nodes, shape_.early && device->capability >= kEarly);
    for (int64_t step = 0; step < steps_ && status.ok(); ++step) {
      status = (*driver)->check(graph_.run(stream), "cuGraphLaunch");
    }
    if (status.ok()) status = copier.copy(tokens->data(), held_.at("tokens").data(), tokens->TotalBytes());
    return status;
  }

  // What is new in every call goes into memory that stays this kernel's: a graph holds addresses.
  absl::Status hold(OpKernelContext* context, const std::string& name, int64_t bytes, const void** data) {
    Tensor& held = held_[name];
    absl::Status status;
    if (held.NumElements() != bytes || !held.IsInitialized()) {
      status = context->allocate_temp(tensorflow::DT_UINT8, tensorflow::TensorShape{bytes}, &held);
    }
    *data = held.data();
    return status;
  }

  absl::Status hold(OpKernelContext* context, const Copier& copier, const std::string& name, const Tensor& given,
                    const void** data) {
    absl::Status status = hold(context, name, given.TotalBytes(), data);
    return status.ok() ? copier.copy(held_[name].data(), given.data(), given.TotalBytes()) : status;
  }

  absl::Status allocate(OpKernelContext* context, const Manifest& manifest, Named* shared) {
    const int64_t symbols[kSymbolCount] = {};
    for (const auto& [name, size] : manifest.temps) {
      int64_t bytes;
      absl::Status status = evaluate(size, symbols, 0, kMostTempBytes, name, &bytes);
      if (status.ok()) status = hold(context, name, bytes, &(*shared)[name]);
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  absl::Status share(OpKernelContext* context, const Copier& copier, StepArrays* arrays) {
    Named& shared = arrays->shared;
    shared["table"] = context->input(3).data();
    absl::Status status = hold(context, copier, "integers", context->input(1), &shared["integers"]);
    if (status.ok()) status = hold(context, copier, "reals", context->input(2), &shared["reals"]);
    if (status.ok()) status = hold(context, copier, "streams", context->input(4), &shared["streams"]);
    if (status.ok()) status = hold(context, "tokens", 4 * steps_ * shape_.batch, &shared["tokens"]);
    const Tensor& x = context->input(0);
    if (status.ok()) status = copier.copy(held_.at("x").data(), x.data(), x.TotalBytes());
    if (status.ok()) status = copier.zero(held_.at("done").data(), 4 * shape_.batch);
    if (!status.ok()) return status;
    OpInputList tables;
    status = context->input_list("tables", &tables);
    const char* const names[] = {"members", "words", "begins", "places", "ends"};
    arrays->groups.resize(shape_.groups.size());
    for (int i = 0; i < tables.size() && status.ok(); ++i) {
      const void** data = &arrays->groups[i / 5][names[i % 5]];
      status = hold(context, copier, absl::StrCat(names[i % 5], i / 5), tables[i], data);
    }
    return status;
  }

  absl::Status collect(OpKernelContext* context, const Copier& copier, Caches* caches, StepArrays* arrays) const {
    OpInputList norms, maps, handles;
    absl::Status status = context->input_list("norms", &norms);
    status.Update(context->input_list("maps", &maps));
    status.Update(context->input_list("caches", &handles));
    status.Update(caches->lock(context, handles));
    if (!status.ok()) return status;
    const auto map = [&](int i) { return Named{{"weight", maps[i].data()}, {"bias", maps[i + 1].data()}}; };
    int cache = 0;
    for (size_t i = 0; i < of_layer_.size(); ++i) {
      StepLayer layer = {map(8 * i), map(8 * i + 2), map(8 * i + 4), map(8 * i + 6), {}};
      layer.qkv["norm"] = norms[2 * i].data(), layer.expand["norm"] = norms[2 * i + 1].data();
      for (const int end = cache + of_layer_[i]; cache < end; ++cache) {
        const Tensor& held = caches->tensor(cache);
        status.Update(check_size(held, shape_.cache(shape_.groups[groups_[cache]]), "a cache"));
        if (held.dtype() != context->input_dtype(0)) {
          status.Update(absl::InvalidArgumentError("a cache is not of x's dtype"));
        }
        if (!status.ok()) return status;
        layer.caches.emplace_back(groups_[cache], nullptr);
        status = caches->own(context, cache, copier, &layer.caches.back().second);
        if (!status.ok()) return status;
      }
      arrays->layers.push_back(std::move(layer));
    }
    arrays->logits = {{"norm", norms[norms.size() - 1].data()}, {"weight", maps[maps.size() - 1].data()}};
    return status;
  }

  std::string key_;
  std::vector<int> groups_, of_layer_;
  StepShape shape_;
  std::mutex mutex_;  // of all below: a graph and its memory serve one call at a time
  int64_t steps_ = 0;
  std::map<std::string, Tensor> held_;
  Graph graph_;
};

#define REGISTER(T)                                                                                        \
  REGISTER_KERNEL_BUILDER(                                                                                 \
      Name("BlocksparseSteps").Device(tensorflow::DEVICE_GPU).HostMemory("caches").TypeConstraint<T>("T"), \
      StepsGpu<T>);
REGISTER(Eigen::half)
REGISTER(Eigen::bfloat16)
REGISTER(float)
#undef REGISTER

}  // namespace
}  // namespace blocksparse::gpu
