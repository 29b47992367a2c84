// Compiled kernels in the driver's hands: each key is loaded once a context.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "driver.h"
#include "manifest.h"

namespace blocksparse::gpu {

struct Device {
  int capability, multiprocessors;
};

struct Kernels {
  Manifest manifest;
  std::vector<Handle> functions;  // one a launch of the manifest
};

class KernelCache {
 public:
  static KernelCache& global();

  absl::StatusOr<Device> device(const Driver& driver, Handle context);

  // A key compiles while the lock is not held, so that other threads go on; the compiler joins equal requests. `soon`
  // names a key that will be wanted next, or nothing.
  absl::StatusOr<std::shared_ptr<const Kernels>> get(const Driver& driver, Handle context, const std::string& key,
                                                     const std::string& soon = "");

 private:
  std::mutex mutex_;
  std::map<Handle, Device> devices_;
  std::map<std::pair<Handle, std::string>, std::shared_ptr<const Kernels>> kernels_;
};

}  // namespace blocksparse::gpu
