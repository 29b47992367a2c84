#include "steps.h"

#include "absl/strings/str_cat.h"

namespace blocksparse::gpu {
namespace {

class Builder {
 public:
  Builder(const Kernels& kernels, const StepArrays& arrays) : kernels_(kernels), arrays_(arrays) {}

  absl::StatusOr<std::vector<Node>> build() {
    for (const StepLayer& layer : arrays_.layers) {
      add("qkv", {&layer.qkv});
      for (const auto& [group, cache] : layer.caches) {
        const Named own = {{"cache", cache}};
        add(absl::StrCat("attention", group), {&own, &arrays_.groups[group]});
      }
      add("project", {&layer.project});
      add("expand", {&layer.expand});
      add("contract", {&layer.contract});
    }
    add("logits", {&arrays_.logits});
    add("draw", {});
    if (!status_.ok()) return status_;
    return nodes_;
  }

 private:
  void add(const std::string& name, std::vector<const Named*> own) {
    own.push_back(&arrays_.shared);
    const std::vector<Launch>& launches = kernels_.manifest.launches;
    for (size_t i = 0; i < launches.size(); ++i) {
      if (launches[i].name == name) return add(launches[i], kernels_.functions[i], own);
    }
    status_.Update(absl::DataLossError(absl::StrCat(kernels_.manifest.key, " has no kernel ", name)));
  }

  void add(const Launch& launch, Handle function, const std::vector<const Named*>& own) {
    const int64_t symbols[kSymbolCount] = {};  // a step's key holds every size
    int64_t grid[3] = {};
    status_.Update(launch.size(symbols, grid));
    Node node{function,
              static_cast<unsigned>(grid[0]),
              static_cast<unsigned>(grid[1]),
              static_cast<unsigned>(launch.warps * 32),
              static_cast<unsigned>(launch.shared),
              {}};
    for (const Argument& argument : launch.arguments) node.pointers.push_back(pointer(argument.pointer, own));
    nodes_.push_back(std::move(node));
  }

  // Null for what a launch has in its list and does not read: the norm of a map that has none.
  const void* pointer(int index, const std::vector<const Named*>& own) const {
    const bool temp = index >= kPointerCount;
    const std::string name(temp ? kernels_.manifest.temps[index - kPointerCount].first : kPointers[index]);
    for (const Named* named : own) {
      const auto found = named->find(name);
      if (found != named->end()) return found->second;
    }
    return nullptr;
  }

  const Kernels& kernels_;
  const StepArrays& arrays_;
  std::vector<Node> nodes_;
  absl::Status status_;
};

}  // namespace

absl::StatusOr<std::vector<Node>> step_nodes(const Kernels& kernels, const StepArrays& arrays) {
  return Builder(kernels, arrays).build();
}

}  // namespace blocksparse::gpu
