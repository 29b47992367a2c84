#include "plan_check.h"

#include <algorithm>
#include <array>
#include <vector>

#include "blake2b.h"
#include "plan.h"

namespace blocksparse {
namespace {

// Each step relies on the steps before it, and all stop at the first error.
class PlanCheck {
 public:
  PlanCheck(const int32_t* data, int64_t size) : data_(data), size_(size) {}

  bool run() {
    if (!header() || !side_sizes(kByQuery, "by_query") || !side_sizes(kByKey, "by_key") || !arrays()) return false;
    plan_ = view_plan(data_);
    const TilePlan &q = plan_.by_query, &k = plan_.by_key;
    const int32_t distinct = plan_.distinct, distinct_keys = plan_.distinct_keys;
    return heads() && key_heads() && starts(q, distinct, "by_query") && starts(k, distinct_keys, "by_key") &&
           rows(q, distinct, plan_.query_time, "by_query") && rows(k, distinct_keys, plan_.key_time, "by_key") &&
           columns(q, plan_.key_time, "by_query") && columns(k, plan_.query_time * plan_.group(), "by_key") && closed();
  }

  std::string error;

 private:
  struct Array {
    int64_t start, size;
    std::string name;
  };

  bool require(bool holds, const std::string& field, const std::string& wanted) {
    if (!holds) error = "the plan is damaged: " + field + " has to be " + wanted;
    return holds;
  }

  bool header() {
    if (!require(size_ >= kHeaderWords, "its size", "64 int32 or more, not " + std::to_string(size_))) return false;
    const bool known = data_[kMagic] == kPlanMagic && data_[kVersion] == kPlanVersion;
    const Blake2b::Digest digest = Blake2b::of(data_ + kHashEnd, (size_ - kHashEnd) * sizeof(int32_t));
    const bool positive = data_[kQueryTime] > 0 && data_[kKeyTime] > 0 && data_[kHeads] > 0 && data_[kDistinct] > 0;
    return require(known, "its first two words", "the magic number and version 1") &&
           require(data_[kLength] == size_, "the recorded size", "its own, " + std::to_string(size_)) &&
           require(std::memcmp(digest.data(), data_ + kHash, digest.size()) == 0, "its hash", "the content's") &&
           require(positive, "times, heads and distinct heads", "positive") && groups() && spare_words();
  }

  // Fewer key heads than heads, and all their queries counted in int32; or none of the words that tell of them.
  bool groups() {
    const int32_t heads = data_[kHeads], key_heads = data_[kKeyHeads];
    if (key_heads == 0) {
      const bool zero = data_[kDistinctKeys] == 0 && data_[kKeyIndex] == 0 && data_[kKeyResidues] == 0;
      return require(zero, "the words of key heads", "0 where there are as many as heads");
    }
    return require(key_heads > 0 && key_heads < heads && heads % key_heads == 0 &&
                       int64_t{data_[kQueryTime]} * (heads / key_heads) <= INT32_MAX,
                   "key heads", "a divisor of the heads") &&
           require(data_[kDistinctKeys] > 0, "distinct key heads", "positive");
  }

  bool spare_words() {
    const auto spare = [this](int first, int last) {
      return std::all_of(data_ + first, data_ + last, [](int32_t word) { return word == 0; });
    };
    const bool zero = spare(kByQuery + side::kCount, kByKey) && spare(kKeyResidues + 1, kHeadIndex);
    return require(zero, "the header's spare words", "0");
  }

  bool side_sizes(int record, const std::string& name) {
    const int32_t* sizes = data_ + record;
    const int32_t m = sizes[side::kRowTile], n = sizes[side::kColumnTile], g = sizes[side::kGranule];
    const auto offered = [](int32_t tile) { return tile == 16 || tile == 32 || tile == 64 || tile == 128; };
    return require((offered(m) || m == 192) && offered(n), name + " tile", "16, 32, 64 or 128, or of 192 rows") &&
           require(g >= 8 && g % 8 == 0 && m % g == 0 && n % g == 0, name + ".granule",
                   "a multiple of 8 that divides both tile sizes") &&
           require(sizes[side::kRowTiles] >= 0 && sizes[side::kColumnTiles] >= 0 && sizes[side::kMasks] >= 0,
                   name + " counts", "0 or more") &&
           require(data_[kQueryTime] % g == 0 && data_[kKeyTime] % g == 0, name + ".granule",
                   "a divisor of both times");
  }

  std::vector<Array> arrays_of(int record, const int (&words)[array::kCount], int32_t distinct,
                               const std::string& name) const {
    const int32_t* sizes = data_ + record;
    const int64_t m = sizes[side::kRowTile], n = sizes[side::kColumnTile], g = sizes[side::kGranule];
    const int64_t tiles = sizes[side::kRowTiles], column_tiles = sizes[side::kColumnTiles];
    return {{data_[words[array::kHeadTiles]], int64_t{distinct} + 1, name + ".head_tiles"},
            {data_[words[array::kRows]], tiles * (m / g), name + ".rows"},
            {data_[words[array::kRowCount]], tiles, name + ".row_count"},
            {data_[words[array::kOffset]], tiles + 1, name + ".offset"},
            {data_[words[array::kFull]], tiles, name + ".full"},
            {data_[words[array::kColumns]], column_tiles * (n / g), name + ".columns"},
            {data_[words[array::kMask]], column_tiles, name + ".mask"},
            {data_[words[array::kMasks]], sizes[side::kMasks] * m * ((n + 31) / 32), name + ".masks"}};
  }

  // Side by side from the header to the end, each at a multiple of 16 bytes, with zeros in between.
  bool arrays() {
    std::vector<Array> all = {{data_[kHeadIndex], data_[kHeads], "head_index"},
                              {data_[kResidues], data_[kHeads], "order"}};
    if (data_[kKeyHeads] != 0) {
      all.push_back({data_[kKeyIndex], data_[kKeyHeads], "key_index"});
      all.push_back({data_[kKeyResidues], data_[kKeyHeads], "key_order"});
    }
    const int32_t distinct = data_[kDistinct], distinct_keys = data_[data_[kKeyHeads] == 0 ? kDistinct : kDistinctKeys];
    for (const Array& array : arrays_of(kByQuery, kQueryStarts, distinct, "by_query")) all.push_back(array);
    for (const Array& array : arrays_of(kByKey, kKeyStarts, distinct_keys, "by_key")) all.push_back(array);
    for (const Array& array : all) {
      const bool inside = array.start >= kHeaderWords && array.size <= size_ - array.start;
      if (!require(inside, array.name, "inside the blob of " + std::to_string(size_) + " int32")) return false;
    }
    std::sort(all.begin(), all.end(), [](const Array& a, const Array& b) {
      return std::array<int64_t, 2>{a.start, a.size} < std::array<int64_t, 2>{b.start, b.size};
    });
    int64_t end = kHeaderWords;
    for (const Array& array : all) {
      if (!require(array.start == end, "the start of " + array.name, std::to_string(end))) return false;
      for (end += array.size; end % 4 != 0; ++end) {
        if (!require(end < size_ && data_[end] == 0, "what follows " + array.name, "0")) return false;
      }
    }
    return require(end == size_, "the last array's end", std::to_string(size_));
  }

  bool heads() {
    const int32_t granule = std::max(plan_.by_query.granule, plan_.by_key.granule);  // powers of two
    for (int32_t head = 0; head < plan_.heads; ++head) {
      const int32_t index = plan_.head_index[head], classes = plan_.residues[head];
      if (index < 0 || index >= plan_.distinct) {
        return require(false, "head_index", "0 to " + std::to_string(plan_.distinct - 1));
      }
      const bool divides = classes >= 1 && plan_.query_time % classes == 0 && plan_.key_time % classes == 0 &&
                           plan_.query_time / classes % granule == 0 && plan_.key_time / classes % granule == 0;
      if (!divides) return require(false, "order", "a divisor of both times into classes of whole granules");
    }
    return true;
  }

  // The heads that read a key head have its order.
  bool key_heads() {
    for (int32_t head = 0; head < plan_.heads; ++head) {
      const int32_t key_head = head / plan_.group(), index = plan_.key_index[key_head];
      if (index < 0 || index >= plan_.distinct_keys) {
        return require(false, "key_index", "0 to " + std::to_string(plan_.distinct_keys - 1));
      }
      if (plan_.key_residues[key_head] != plan_.residues[head]) {
        return require(false, "key_order", "that of the heads that read the key head");
      }
    }
    return true;
  }

  static bool rises(const int32_t* values, int64_t count, int32_t last) {
    return values[0] == 0 && values[count] == last && std::is_sorted(values, values + count + 1);
  }

  static int32_t longest(const int32_t* values, int64_t count) {
    int32_t most = 0;
    for (int64_t i = 0; i < count; ++i) most = std::max(most, values[i + 1] - values[i]);
    return most;
  }

  bool starts(const TilePlan& side, int32_t distinct, const std::string& name) {
    const bool tiles = rises(side.head_tiles, distinct, side.tiles);
    const bool visits = rises(side.offset, side.tiles, side.column_tiles);
    return require(tiles, name + ".head_tiles", "rising to the tile count") &&
           require(visits, name + ".offset", "rising to the tile count") &&
           require(side.most_row_tiles == longest(side.head_tiles, distinct), name + ".most_row_tiles",
                   "that of head_tiles") &&
           require(side.most_column_tiles == longest(side.offset, side.tiles), name + ".most_column_tiles",
                   "that of offset");
  }

  // The row tiles of each head hold every granule of `time` rows once; a short one repeats its first.
  bool rows(const TilePlan& side, int32_t distinct, int32_t time, const std::string& name) {
    const int64_t granules = time / side.granule, slots = side.row_tile / side.granule;
    const auto wrong = [&] { return require(false, name + ".rows", "tiles that hold every row of a head once"); };
    if (granules * distinct > side.tiles * slots) return wrong();
    std::vector<int32_t> owner(granules, -1);
    for (int32_t head = 0; head < distinct; ++head) {
      int64_t found = 0;
      for (int32_t tile = side.head_tiles[head]; tile < side.head_tiles[head + 1]; ++tile) {
        const int32_t count = side.row_count[tile], used = count / side.granule;
        if (count < 1 || count > side.row_tile || count % side.granule != 0) {
          return require(false, name + ".row_count", "granules of 1 to " + std::to_string(side.row_tile) + " rows");
        }
        const int32_t* row = side.row_granules(tile);
        for (int32_t i = 0; i < used; ++i, ++found) {
          if (row[i] < 0 || row[i] >= granules || owner[row[i]] == head) return wrong();
          owner[row[i]] = head;
        }
        if (std::any_of(row + used, row + slots, [=](int32_t spare) { return spare != row[0]; })) return wrong();
      }
      if (found != granules) return wrong();
    }
    return true;
  }

  // What of a mask is known to be 0: its rows from `rows` on, and the lanes (granules of columns) in the bit set.
  struct MaskedOff {
    int32_t rows;
    uint32_t lanes;
  };

  // Each row tile visits a granule of columns once; what a short column tile or row tile repeats is masked off.
  bool columns(const TilePlan& side, int32_t time, const std::string& name) {
    if (!mask_words(side, name)) return false;
    std::vector<int32_t> visitor(time / side.granule, -1);
    std::vector<MaskedOff> masked_off(side.distinct_masks, {side.row_tile, 0});
    for (int32_t tile = 0; tile < side.tiles; ++tile) {
      const int32_t begin = side.offset[tile], end = side.offset[tile + 1];
      if (side.full[tile] < 0 || side.full[tile] > end - begin) {
        return require(false, name + ".full", "at most the tiles visited");
      }
      for (int32_t column = begin; column < end; ++column) {
        const bool full = side.is_full(tile, column);
        if (side.mask[column] < 0 || side.mask[column] >= (full ? 1 : side.distinct_masks)) {
          return require(false, name + ".mask", "0 to " + std::to_string(side.distinct_masks - 1) + ", 0 where full");
        }
        uint32_t repeats = 0;
        if (!lanes(side, column, tile, full, &visitor, &repeats, name)) return false;
        if (!full && !is_masked_off(side, column, {side.row_count[tile], repeats}, &masked_off)) {
          return require(false, name + ".masks", "0 in rows and columns that a short tile repeats");
        }
      }
    }
    return true;
  }

  bool mask_words(const TilePlan& side, const std::string& name) {
    if (side.column_tile >= 32) return true;
    const uint32_t* end = side.masks + int64_t{side.distinct_masks} * side.row_tile;
    const bool inside = std::all_of(side.masks, end, [&](uint32_t word) { return word >> side.column_tile == 0; });
    return require(inside, name + ".masks", "0 past the column tile");
  }

  // repeats: the lanes of a masked tile that repeat its first one.
  bool lanes(const TilePlan& side, int32_t column, int32_t tile, bool full, std::vector<int32_t>* visitor,
             uint32_t* repeats, const std::string& name) {
    const int32_t *granules = side.granules(column), last = static_cast<int32_t>(visitor->size()) - 1;
    for (int32_t lane = 0; lane < side.column_tile / side.granule; ++lane) {
      const int32_t granule = granules[lane];
      if (granule < 0 || granule > last) return require(false, name + ".columns", "0 to " + std::to_string(last));
      if (!full && lane > 0 && granule == granules[0]) {
        *repeats |= 1u << lane;
      } else if ((*visitor)[granule] == tile) {
        return require(false, name + ".columns", "visited once by a row tile");
      } else {
        (*visitor)[granule] = tile;
      }
    }
    return true;
  }

  static bool is_masked_off(const TilePlan& side, int32_t column, MaskedOff wanted, std::vector<MaskedOff>* known) {
    MaskedOff& mask = (*known)[side.mask[column]];
    if (wanted.rows >= mask.rows && (wanted.lanes & ~mask.lanes) == 0) return true;
    uint32_t off[kMostRows / 32] = {};
    for (int32_t at = 0; at < side.column_tile; at += 8) {
      if (wanted.lanes >> at / side.granule & 1) off[at / 32] |= 0xffu << at % 32;
    }
    const uint32_t* words = side.mask_of(column);
    const int32_t size = side.mask_words();
    for (int32_t i = 0; i < side.row_tile * size; ++i) {
      if (words[i] & (i / size < wanted.rows ? off[i % size] : ~0u)) return false;
    }
    mask.rows = std::min(mask.rows, wanted.rows), mask.lanes |= wanted.lanes;
    return true;
  }

  // The claim that every key is in the columns of one row tile of by_query (1), which has one column tile (2). A plan
  // that claims less than it could is a good one: those of earlier versions do.
  bool closed() {
    const int32_t claim = data_[kClosed];
    if (claim < 0 || claim > 2) return require(false, "closed", "0, 1 or 2");
    if (claim == 0) return true;
    const TilePlan& side = plan_.by_query;
    std::vector<int32_t> owner(plan_.key_time / side.granule, -1);
    for (int32_t head = 0; head < plan_.distinct; ++head) {
      size_t found = 0;
      const int32_t begin = side.offset[side.head_tiles[head]], end = side.offset[side.head_tiles[head + 1]];
      for (int32_t column = begin; column < end; ++column) {
        const int32_t* granules = side.granules(column);
        for (int32_t lane = 0; lane < side.column_tile / side.granule; ++lane) {
          if (lane > 0 && granules[lane] == granules[0]) continue;
          if (owner[granules[lane]] == head) return require(false, "closed", "0: a key is in two row tiles");
          owner[granules[lane]] = head, ++found;
        }
      }
      if (found != owner.size()) return require(false, "closed", "0: a key is in no row tile");
    }
    const bool single = side.most_column_tiles == 1 && side.column_tiles == side.tiles;
    return require(claim == 1 || single, "closed", "1: not every row tile has just one column tile");
  }

  const int32_t* data_;
  const int64_t size_;
  Plan plan_;
};

}  // namespace

std::string check_plan(const int32_t* data, int64_t size) {
  PlanCheck check(data, size);
  check.run();
  return check.error;
}

}  // namespace blocksparse
