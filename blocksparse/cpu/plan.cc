#include "plan.h"

#include <mutex>
#include <set>

#include "content_hash.h"
#include "plan_check.h"

namespace blocksparse {
namespace {

TilePlan view_side(const int32_t* data, int record, const int (&starts)[array::kCount]) {
  const int32_t* sizes = data + record;
  const auto at = [&](int array) { return data + data[starts[array]]; };
  return {sizes[side::kRowTile],      sizes[side::kColumnTile],
          sizes[side::kGranule],      sizes[side::kRowTiles],
          sizes[side::kColumnTiles],  sizes[side::kMasks],
          sizes[side::kMostRowTiles], sizes[side::kMostColumnTiles],
          at(array::kHeadTiles),      at(array::kRows),
          at(array::kRowCount),       at(array::kOffset),
          at(array::kFull),           at(array::kColumns),
          at(array::kMask),           reinterpret_cast<const uint32_t*>(at(array::kMasks))};
}

// Plans already found good. A long-lived process that makes many starts over at a thousand.
class Checked {
 public:
  using Identity = std::array<uint64_t, 3>;
  bool contains(const Identity& plan) {
    std::lock_guard<std::mutex> lock(mutex_);
    return plans_.count(plan) != 0;
  }
  void add(const Identity& plan) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (plans_.size() >= 1000) plans_.clear();
    plans_.insert(plan);
  }

 private:
  std::mutex mutex_;
  std::set<Identity> plans_;
};

}  // namespace

Plan view_plan(const int32_t* data) {
  const bool grouped = data[kKeyHeads] != 0;
  return {data[kQueryTime],
          data[kKeyTime],
          data[kHeads],
          data[kDistinct],
          data + data[kHeadIndex],
          data + data[kResidues],
          data[grouped ? kKeyHeads : kHeads],
          data[grouped ? kDistinctKeys : kDistinct],
          data + data[grouped ? kKeyIndex : kHeadIndex],
          data + data[grouped ? kKeyResidues : kResidues],
          view_side(data, kByQuery, kQueryStarts),
          view_side(data, kByKey, kKeyStarts),
          {}};
}

std::string read_plan(const int32_t* data, int64_t size, Plan* plan) {
  static auto* checked = new Checked;  // never destroyed: threads of a pool may outlive static objects
  const ContentHash::Value hash = ContentHash::of(data, size);
  const Checked::Identity identity = {hash[0], hash[1], uint64_t(size)};
  if (!checked->contains(identity)) {
    const std::string error = check_plan(data, size);
    if (!error.empty()) return error;
    checked->add(identity);
  }
  *plan = view_plan(data);
  plan->identity = identity;
  return "";
}

}  // namespace blocksparse
