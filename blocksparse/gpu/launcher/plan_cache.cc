#include "plan_cache.h"

#include <algorithm>

namespace blocksparse::gpu {
namespace {

absl::StatusOr<std::shared_ptr<const DevicePlan>> upload(tensorflow::OpKernelContext* context,
                                                         const tensorflow::Tensor& plan, Handle stream) {
  absl::StatusOr<const Driver*> driver = get_driver();
  if (!driver.ok()) return driver.status();
  const auto words = plan.vec<int32_t>();
  auto uploaded = std::make_shared<DevicePlan>();
  std::copy_n(words.data(), uploaded->header.size(), uploaded->header.begin());
  const int32_t *order = words.data() + uploaded->header[49], heads = uploaded->header[9];
  uploaded->reordered = std::any_of(order, order + heads, [](int32_t stride) { return stride != 1; });
  absl::Status status = context->allocate_temp(plan.dtype(), plan.shape(), &uploaded->blob);
  if (!status.ok()) return status;
  ContextScope scope(**driver, stream);
  if (!scope.status().ok()) return scope.status();
  const auto to = reinterpret_cast<DevicePointer>(uploaded->blob.data());
  status = (*driver)->check((*driver)->copy_to_device(to, words.data(), plan.TotalBytes(), stream), "uploading a plan");
  // Other threads may use the plan as soon as it is in the cache, and `plan` may go when this call ends.
  if (status.ok()) status = (*driver)->check((*driver)->synchronize_stream(stream), "uploading a plan");
  if (!status.ok()) return status;
  return uploaded;
}

}  // namespace

absl::StatusOr<std::shared_ptr<const DevicePlan>> PlanCache::get(tensorflow::OpKernelContext* context,
                                                                 const tensorflow::Tensor& plan, Handle stream) {
  const auto words = plan.vec<int32_t>();
  Key key{{words(2), words(3), words(4), words(5)}, stream};
  std::lock_guard<std::mutex> lock(mutex_);  // also held while uploading: two threads must not upload the same plan
  auto found = index_.find(key);
  if (found != index_.end()) {
    entries_.splice(entries_.begin(), entries_, found->second);
    return found->second->second;
  }
  absl::StatusOr<std::shared_ptr<const DevicePlan>> uploaded = upload(context, plan, stream);
  if (!uploaded.ok()) return uploaded;
  entries_.emplace_front(key, *uploaded);
  index_[key] = entries_.begin();
  bytes_ += plan.TotalBytes();
  while (bytes_ > kMostBytes && entries_.size() > 1) {
    bytes_ -= entries_.back().second->blob.TotalBytes();
    index_.erase(entries_.back().first);
    entries_.pop_back();
  }
  return uploaded;
}

}  // namespace blocksparse::gpu
