// A decoding step as the launches that it is made of, one behind the other.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "graph.h"
#include "kernel_cache.h"

namespace blocksparse::gpu {

// Pointers by the names of kPointers and of the manifest's temps.
using Named = std::map<std::string, const void*>;

struct StepLayer {
  Named qkv, project, expand, contract;             // norm, weight, bias
  std::vector<std::pair<int, const void*>> caches;  // the group and the cache of each attention
};

struct StepArrays {
  Named shared;               // temps, and what all launches may read
  std::vector<Named> groups;  // members, words, begins, places, ends
  std::vector<StepLayer> layers;
  Named logits;  // norm, weight
};

// The nodes of one step. Fails where the kernels lack a launch.
absl::StatusOr<std::vector<Node>> step_nodes(const Kernels& kernels, const StepArrays& arrays);

}  // namespace blocksparse::gpu
