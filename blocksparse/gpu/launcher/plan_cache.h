// Plans on the device: each is uploaded once per stream and kept for the calls to come.
#pragma once

#include <array>
#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

#include "../../cpu/plan.h"
#include "driver.h"
#include "tensorflow/core/framework/op_kernel.h"

namespace blocksparse::gpu {

struct DevicePlan {
  tensorflow::Tensor host;  // what `plan` views
  Plan plan;
  std::array<int32_t, kHeaderWords> header;
  int32_t orders;
  tensorflow::Tensor blob;  // in device memory
};

class PlanCache {
 public:
  static PlanCache& global() {
    static auto* cache = new PlanCache;  // never destroyed: TensorFlow's allocators may go first
    return *cache;
  }

  // `plan` is the blob in host memory, checked before it is uploaded. A stream belongs to one device and one allocator,
  // and orders the reuse of an evicted plan's memory after the kernels that still read it.
  absl::StatusOr<std::shared_ptr<const DevicePlan>> get(tensorflow::OpKernelContext* context,
                                                        const tensorflow::Tensor& plan, Handle stream);

 private:
  static constexpr int64_t kMostBytes = int64_t{256} << 20;
  static constexpr size_t kMostHeld = 256;
  using Entry = std::shared_ptr<const DevicePlan>;
  using Key = std::pair<std::array<uint64_t, 3>, Handle>;  // Plan::identity, stream
  using Entries = std::list<std::pair<Key, Entry>>;
  // A plan that was uploaded before, so that a call need not hash it again. Holding the tensor keeps its memory from
  // being used for another one.
  struct Held {
    tensorflow::Tensor host;
    Key key;
  };

  Entry find(const Key& key);  // null where it is not
  Entry find_held(const tensorflow::Tensor& plan, Handle stream);
  void hold(const tensorflow::Tensor& plan, const Key& key);
  void add(const Key& key, Entry entry);

  std::mutex mutex_;
  Entries entries_;  // most recently used first
  std::map<Key, Entries::iterator> index_;
  std::map<std::pair<const void*, Handle>, Held> held_;  // by where its words are
  int64_t bytes_ = 0;
};

}  // namespace blocksparse::gpu
