// A row of launches as one CUDA graph: the driver starts each as the one before ends, without the host.
#pragma once

#include <vector>

#include "driver.h"

namespace blocksparse::gpu {

// One launch whose arguments are all pointers.
struct Node {
  Handle function;
  unsigned grid_x, grid_y, threads, shared;
  std::vector<const void*> pointers;

  bool operator==(const Node& other) const {
    return function == other.function && grid_x == other.grid_x && grid_y == other.grid_y && threads == other.threads &&
           shared == other.shared && pointers == other.pointers;
  }
};

// The driver's functions for it, from CUDA 12.3 on.
struct GraphDriver {
  struct Attribute {  // CUlaunchAttribute
    uint32_t id, padding;
    int32_t value[16];
  };
  struct Config {  // CUlaunchConfig
    unsigned grid[3], block[3], shared;
    Handle stream;
    const Attribute* attributes;
    unsigned count;
  };
  static constexpr uint32_t kProgrammaticSerialization = 6;  // CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
  static constexpr unsigned kNonBlocking = 1;                // CU_STREAM_NON_BLOCKING
  static constexpr int kRelaxed = 2;                         // CU_STREAM_CAPTURE_MODE_RELAXED

  Result (*launch)(const Config*, Handle function, void** parameters, void** extra);
  Result (*create_stream)(Handle* stream, unsigned flags);
  Result (*destroy_stream)(Handle stream);
  Result (*begin_capture)(Handle stream, int mode);
  Result (*end_capture)(Handle stream, Handle* graph);
  Result (*instantiate)(Handle* executable, Handle graph, uint64_t flags);
  Result (*destroy_graph)(Handle graph);
  Result (*run)(Handle executable, Handle stream);
  Result (*destroy)(Handle executable);
  Result (*copy)(DevicePointer to, DevicePointer from, size_t bytes, Handle stream);
};

inline absl::StatusOr<const GraphDriver*> get_graph_driver() {
  static const absl::StatusOr<const GraphDriver*> driver = []() -> absl::StatusOr<const GraphDriver*> {
    void* library = dlopen("libcuda.so.1", RTLD_NOW);
    if (library == nullptr) return absl::UnavailableError(absl::StrCat("no CUDA driver: ", dlerror()));
    auto* found = new GraphDriver;  // lives as long as the process
    absl::Status status;
    auto find = [&](auto& function, const char* name) {
      function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(library, name));
      if (function == nullptr) status.Update(absl::UnavailableError(absl::StrCat("libcuda.so.1 lacks ", name)));
    };
    find(found->launch, "cuLaunchKernelEx");
    find(found->create_stream, "cuStreamCreate");
    find(found->destroy_stream, "cuStreamDestroy_v2");
    find(found->begin_capture, "cuStreamBeginCapture_v2");
    find(found->end_capture, "cuStreamEndCapture");
    find(found->instantiate, "cuGraphInstantiateWithFlags");
    find(found->destroy_graph, "cuGraphDestroy");
    find(found->run, "cuGraphLaunch");
    find(found->destroy, "cuGraphExecDestroy");
    find(found->copy, "cuMemcpyDtoDAsync_v2");
    if (!status.ok()) return status;
    return found;
  }();
  return driver;
}

// The graph of the last nodes it was given. With `early`, a kernel may start while the one before still runs: its code
// waits for that one where it has to.
class Graph {
 public:
  Graph() = default;
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  ~Graph() { clear(); }

  absl::Status make(const Driver& driver, const std::vector<Node>& nodes, bool early) {
    absl::StatusOr<const GraphDriver*> found = get_graph_driver();
    if (!found.ok()) return found.status();
    if (executable_ != nullptr && nodes == nodes_) return absl::OkStatus();
    clear();
    functions_ = *found;
    Handle stream, graph = nullptr;
    absl::Status status = driver.check(functions_->create_stream(&stream, GraphDriver::kNonBlocking), "cuStreamCreate");
    if (!status.ok()) return status;
    status = driver.check(functions_->begin_capture(stream, GraphDriver::kRelaxed), "cuStreamBeginCapture");
    if (status.ok()) {
      for (const Node& node : nodes) status.Update(driver.check(launch(node, stream, early), "cuLaunchKernelEx"));
      status.Update(driver.check(functions_->end_capture(stream, &graph), "cuStreamEndCapture"));
    }
    if (status.ok()) status = driver.check(functions_->instantiate(&executable_, graph, 0), "cuGraphInstantiate");
    if (graph != nullptr) functions_->destroy_graph(graph);
    functions_->destroy_stream(stream);
    if (!status.ok()) executable_ = nullptr;
    nodes_ = nodes;
    return status;
  }

  Result run(Handle stream) const { return functions_->run(executable_, stream); }

 private:
  Result launch(const Node& node, Handle stream, bool early) const {
    std::vector<const void*> arguments = node.pointers;
    arguments.resize(arguments.size() + 2);  // Triton's kernels end in two scratch pointers, unused here
    std::vector<void*> parameters;
    for (const void*& argument : arguments) parameters.push_back(&argument);
    GraphDriver::Attribute attribute{GraphDriver::kProgrammaticSerialization, 0, {1}};
    const GraphDriver::Config config = {
        {node.grid_x, node.grid_y, 1}, {node.threads, 1, 1}, node.shared, stream, &attribute, early ? 1u : 0u};
    return functions_->launch(&config, node.function, parameters.data(), nullptr);
  }

  void clear() {
    if (executable_ != nullptr) functions_->destroy(executable_);
    executable_ = nullptr;
  }

  const GraphDriver* functions_ = nullptr;
  Handle executable_ = nullptr;
  std::vector<Node> nodes_;
};

}  // namespace blocksparse::gpu
