#include "plan.h"

#include <algorithm>
#include <array>
#include <mutex>
#include <set>
#include <vector>

namespace blocksparse {
namespace {

constexpr int32_t kMagic = 0x42535031, kVersion = 1, kHeader = 64;
using Words = std::array<int, 8>;  // header words that hold the offsets of a TilePlan's arrays
constexpr Words kByQuery = {50, 51, 52, 53, 54, 55, 56, 57}, kByKey = {58, 59, 60, 61, 62, 63, 11, 12};

// Reads a header field by field; the first error stays.
class Reader {
 public:
  Reader(const int32_t* data, int64_t size) : data_(data), size_(size) {}

  void require(bool holds, const std::string& field, const std::string& wanted) {
    if (!holds && error.empty()) error = "the plan is damaged: " + field + " has to be " + wanted;
  }

  const int32_t* array(int word, int64_t count, const std::string& field) {
    const int64_t start = data_[word];
    const bool inside = start >= kHeader && start % 4 == 0 && count >= 0 && count <= size_ - start;
    require(inside, field, "inside the blob of " + std::to_string(size_) + " int32");
    return inside ? data_ + start : data_;
  }

  TilePlan side(int record, const Words& words, int32_t distinct, const std::string& name) {
    TilePlan side{};
    const int32_t* sizes = data_ + record;
    side.row_tile = sizes[0], side.column_tile = sizes[1], side.granule = sizes[2], side.tiles = sizes[3];
    side.column_tiles = sizes[4], side.distinct_masks = sizes[5];
    side.most_row_tiles = sizes[6], side.most_column_tiles = sizes[7];
    for (int32_t tile : {side.row_tile, side.column_tile}) {
      require(tile == 16 || tile == 32 || tile == 64 || tile == 128, name + " tile", "16, 32, 64 or 128");
    }
    const int32_t g = side.granule;
    const bool divides = g >= 8 && g % 8 == 0 && side.row_tile % g == 0 && side.column_tile % g == 0;
    require(divides, name + ".granule", "a multiple of 8 that divides both tile sizes");
    require(side.tiles >= 0 && side.column_tiles >= 0 && side.distinct_masks >= 0, name + " counts", "0 or more");
    if (!error.empty()) return side;
    side.head_tiles = array(words[0], int64_t(distinct) + 1, name + ".head_tiles");
    side.rows = array(words[1], int64_t(side.tiles) * (side.row_tile / g), name + ".rows");
    side.row_count = array(words[2], side.tiles, name + ".row_count");
    side.offset = array(words[3], int64_t(side.tiles) + 1, name + ".offset");
    side.full = array(words[4], side.tiles, name + ".full");
    side.columns = array(words[5], int64_t(side.column_tiles) * (side.column_tile / g), name + ".columns");
    side.mask = array(words[6], side.column_tiles, name + ".mask");
    const int64_t mask_size = int64_t(side.row_tile) * side.mask_words();
    side.masks = reinterpret_cast<const uint32_t*>(array(words[7], side.distinct_masks * mask_size, name + ".masks"));
    return side;
  }

  std::string error;

 private:
  const int32_t* data_;
  int64_t size_;
};

bool rises(const int32_t* values, int64_t count, int32_t last) {
  return values[0] == 0 && values[count] == last && std::is_sorted(values, values + count + 1);
}

// True when the row tiles of one head hold every granule of rows once.
bool covers(const TilePlan& side, int32_t first, int32_t last, int32_t granules) {
  std::vector<bool> seen(granules, false);
  int32_t found = 0;
  for (int32_t tile = first; tile < last; ++tile) {
    const int32_t* row = side.row_granules(tile);
    for (int32_t i = 0; i < side.row_count[tile] / side.granule; ++i, ++found) {
      if (row[i] < 0 || row[i] >= granules || seen[row[i]]) return false;
      seen[row[i]] = true;
    }
  }
  return found == granules;
}

void check_side(Reader* reader, const TilePlan& side, const Plan& plan, int32_t rows, int32_t columns,
                const std::string& name) {
  const bool whole = rows % side.granule == 0 && columns % side.granule == 0;
  reader->require(whole, name + ".granule", "a divisor of both times");
  reader->require(rises(side.head_tiles, plan.distinct, side.tiles), name + ".head_tiles", "rising to the tile count");
  reader->require(rises(side.offset, side.tiles, side.column_tiles), name + ".offset", "rising to the tile count");
  if (!reader->error.empty()) return;
  for (int32_t tile = 0; tile < side.tiles; ++tile) {
    const int32_t count = side.row_count[tile];
    const bool whole = count >= 1 && count <= side.row_tile && count % side.granule == 0;
    reader->require(whole, name + ".row_count", "granules of 1 to " + std::to_string(side.row_tile) + " rows");
    const int32_t visits = side.offset[tile + 1] - side.offset[tile];
    reader->require(side.full[tile] >= 0 && side.full[tile] <= visits, name + ".full", "at most the tiles visited");
    for (int32_t column = side.offset[tile] + side.full[tile]; column < side.offset[tile + 1]; ++column) {
      const bool listed = side.mask[column] >= 0 && side.mask[column] < side.distinct_masks;
      reader->require(listed, name + ".mask", "0 to " + std::to_string(side.distinct_masks - 1));
    }
  }
  for (int32_t head = 0; head < plan.distinct; ++head) {
    const bool once = covers(side, side.head_tiles[head], side.head_tiles[head + 1], rows / side.granule);
    reader->require(once, name + ".rows", "tiles that hold every row of a head once");
  }
  const int64_t entries = int64_t(side.column_tiles) * (side.column_tile / side.granule);
  const int32_t last = columns / side.granule;
  const bool inside = std::all_of(side.columns, side.columns + entries, [=](int32_t c) { return c >= 0 && c < last; });
  reader->require(inside, name + ".columns", "0 to " + std::to_string(last - 1));
}

void check_contents(Reader* reader, const Plan& plan) {
  for (int32_t head = 0; head < plan.heads; ++head) {
    const int32_t index = plan.head_index[head], stride = plan.order[head];
    reader->require(index >= 0 && index < plan.distinct, "head_index", "0 to " + std::to_string(plan.distinct - 1));
    const int32_t granule = std::max(plan.by_query.granule, plan.by_key.granule);  // powers of two
    const bool divides = stride >= 1 && plan.query_time % stride == 0 && plan.key_time % stride == 0 &&
                         plan.query_time / stride % granule == 0 && plan.key_time / stride % granule == 0;
    reader->require(divides, "order", "a divisor of both times into classes of whole granules");
  }
  check_side(reader, plan.by_query, plan, plan.query_time, plan.key_time, "by_query");
  check_side(reader, plan.by_key, plan, plan.key_time, plan.query_time, "by_key");
}

// Content hashes of plans already found good. A long-lived process that makes many plans starts over at a thousand.
class Checked {
 public:
  using Hash = std::array<int32_t, 5>;
  bool contains(const Hash& hash) {
    std::lock_guard<std::mutex> lock(mutex_);
    return hashes_.count(hash) != 0;
  }
  void add(const Hash& hash) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (hashes_.size() >= 1000) hashes_.clear();
    hashes_.insert(hash);
  }

 private:
  std::mutex mutex_;
  std::set<Hash> hashes_;
};

}  // namespace

std::string read_plan(const int32_t* data, int64_t size, Plan* plan) {
  static Checked checked;
  Reader reader(data, size);
  reader.require(size >= kHeader, "its size", "64 int32 or more, not " + std::to_string(size));
  if (!reader.error.empty()) return reader.error;
  reader.require(data[0] == kMagic && data[1] == kVersion, "its first two words", "the magic number and version 1");
  reader.require(data[6] == size, "the recorded size", "its own, " + std::to_string(size));
  plan->query_time = data[7], plan->key_time = data[8], plan->heads = data[9], plan->distinct = data[10];
  const bool counts = data[7] > 0 && data[8] > 0 && data[9] > 0 && data[10] > 0;
  reader.require(counts, "times, heads and distinct heads", "positive");
  if (!reader.error.empty()) return reader.error;
  plan->head_index = reader.array(48, plan->heads, "head_index");
  plan->order = reader.array(49, plan->heads, "order");
  plan->by_query = reader.side(16, kByQuery, plan->distinct, "by_query");
  plan->by_key = reader.side(32, kByKey, plan->distinct, "by_key");
  const Checked::Hash hash = {data[2], data[3], data[4], data[5], data[6]};
  if (!reader.error.empty() || checked.contains(hash)) return reader.error;
  check_contents(&reader, *plan);
  if (reader.error.empty()) checked.add(hash);
  return reader.error;
}

}  // namespace blocksparse
