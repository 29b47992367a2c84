// Plans on the device: each is uploaded once per stream and kept for the calls to come.
#pragma once

#include <array>
#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

#include "driver.h"
#include "tensorflow/core/framework/op_kernel.h"

namespace blocksparse::gpu {

struct DevicePlan {
  std::array<int32_t, 64> header;
  bool reordered;
  tensorflow::Tensor blob;  // in device memory
};

class PlanCache {
 public:
  static PlanCache& global() {
    static auto* cache = new PlanCache;  // never destroyed: TensorFlow's allocators may go first
    return *cache;
  }

  // `plan` is the blob in host memory. A stream belongs to one device and one allocator, and orders the reuse of an
  // evicted plan's memory after the kernels that still read it.
  absl::StatusOr<std::shared_ptr<const DevicePlan>> get(tensorflow::OpKernelContext* context,
                                                        const tensorflow::Tensor& plan, Handle stream);

 private:
  static constexpr int64_t kMostBytes = int64_t{256} << 20;
  using Key = std::pair<std::array<int32_t, 4>, Handle>;  // content hash, stream
  using Entries = std::list<std::pair<Key, std::shared_ptr<const DevicePlan>>>;

  std::mutex mutex_;
  Entries entries_;  // most recently used first
  std::map<Key, Entries::iterator> index_;
  int64_t bytes_ = 0;
};

}  // namespace blocksparse::gpu
