#include "plan_cache.h"

#include <algorithm>

namespace blocksparse::gpu {
namespace {

absl::StatusOr<std::shared_ptr<const DevicePlan>> upload(tensorflow::OpKernelContext* context,
                                                         const tensorflow::Tensor& host, const Plan& plan,
                                                         Handle stream) {
  absl::StatusOr<const Driver*> driver = get_driver();
  if (!driver.ok()) return driver.status();
  const int32_t* words = host.vec<int32_t>().data();
  auto uploaded = std::make_shared<DevicePlan>();
  uploaded->host = host, uploaded->plan = plan, uploaded->orders = plan.orders();
  std::copy_n(words, uploaded->header.size(), uploaded->header.begin());
  absl::Status status = context->allocate_temp(host.dtype(), host.shape(), &uploaded->blob);
  if (!status.ok()) return status;
  ContextScope scope(**driver, stream);
  if (!scope.status().ok()) return scope.status();
  const auto to = reinterpret_cast<DevicePointer>(uploaded->blob.data());
  status = (*driver)->check((*driver)->copy_to_device(to, words, host.TotalBytes(), stream), "uploading a plan");
  // Other threads may use the plan as soon as it is in the cache, and `host` may go when this call ends.
  if (status.ok()) status = (*driver)->check((*driver)->synchronize_stream(stream), "uploading a plan");
  if (!status.ok()) return status;
  return uploaded;
}

}  // namespace

absl::StatusOr<std::shared_ptr<const DevicePlan>> PlanCache::get(tensorflow::OpKernelContext* context,
                                                                 const tensorflow::Tensor& host, Handle stream) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (Entry found = find_held(host, stream)) return found;
  }
  Plan plan;
  const std::string error = read_plan(host.vec<int32_t>().data(), host.NumElements(), &plan);
  if (!error.empty()) return absl::InvalidArgumentError(error);
  const Key key = {plan.identity, stream};
  std::lock_guard<std::mutex> lock(mutex_);  // also held while uploading: two threads must not upload the same plan
  Entry entry = find(key);
  if (entry == nullptr) {
    absl::StatusOr<Entry> uploaded = upload(context, host, plan, stream);
    if (!uploaded.ok()) return uploaded;
    entry = *uploaded;
    add(key, entry);
  }
  hold(host, key);
  return entry;
}

PlanCache::Entry PlanCache::find(const Key& key) {
  const auto found = index_.find(key);
  if (found == index_.end()) return nullptr;
  entries_.splice(entries_.begin(), entries_, found->second);
  return found->second->second;
}

PlanCache::Entry PlanCache::find_held(const tensorflow::Tensor& plan, Handle stream) {
  const auto found = held_.find({plan.data(), stream});
  // Another tensor at the same place is another view of memory that TensorFlow does not own, an array of NumPy's say,
  // and may hold something else by now.
  if (found == held_.end() || !found->second.host.SharesBufferWith(plan)) return nullptr;
  return plan.shape() == found->second.host.shape() ? find(found->second.key) : nullptr;
}

void PlanCache::hold(const tensorflow::Tensor& plan, const Key& key) {
  for (auto held = held_.begin(); held != held_.end();) {
    const bool wanted = index_.count(held->second.key) != 0 && !held->second.host.RefCountIsOne();
    held = wanted ? std::next(held) : held_.erase(held);
  }
  if (held_.size() >= kMostHeld) held_.clear();
  held_.insert_or_assign({plan.data(), key.second}, Held{plan, key});
}

void PlanCache::add(const Key& key, Entry entry) {
  bytes_ += entry->blob.TotalBytes();
  entries_.emplace_front(key, std::move(entry));
  index_[key] = entries_.begin();
  while (bytes_ > kMostBytes && entries_.size() > 1) {
    bytes_ -= entries_.back().second->blob.TotalBytes();
    index_.erase(entries_.back().first);
    entries_.pop_back();
  }
}

}  // namespace blocksparse::gpu
