// How the backward pass splits its work: the key tiles of each head in shares of about equal work. A share owns its
// keys' gradients and a partial dq over the queries it touches, of all heads that read its key head; where shares
// overlap, partials are added in their order. The split depends on the plan and the shape alone, so the result has the
// same bits for any number of threads.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "plan.h"
#include "product.h"

namespace blocksparse {

struct Share {
  int32_t first, last;  // its tiles are order[first] .. order[last]
  int32_t query_begin,
      query_end;               // plan rows of the queries it touches, the same range of all heads that read its keys
  int32_t own_begin, own_end;  // those of them that no other share touches
  int64_t offset;              // first row of its partial dq among its head's

  int32_t queries() const { return query_end - query_begin; }
  bool touches(int32_t query) const { return query >= query_begin && query < query_end; }
  bool owns(int32_t begin, int32_t end) const { return begin >= own_begin && end <= own_end; }
};

class Shares {
 public:
  // batch_heads: how many key heads, of all batch rows, are split this way; each partial dq row is head_width numbers.
  Shares(const Plan& plan, int64_t batch_heads, int64_t head_width)
      : group_(plan.group()), query_time_(plan.query_time), order_(plan.by_key.tiles) {
    const TilePlan& tiles = plan.by_key;
    const int32_t distinct = plan.distinct_keys;
    std::iota(order_.begin(), order_.end(), 0);
    for (int32_t head = 0; head < distinct; ++head) {
      const auto begin = order_.begin() + tiles.head_tiles[head], end = order_.begin() + tiles.head_tiles[head + 1];
      std::sort(begin, end, [&](int32_t a, int32_t b) { return *tiles.row_granules(a) < *tiles.row_granules(b); });
    }
    constexpr int64_t kTasks = 32;            // enough for a balanced load on the threads of one machine
    constexpr int64_t kWorkspace = 16 << 20;  // numbers that partial sums may take; more only up to 3 times dq
    batch_heads = std::max<int64_t>(batch_heads, 1);
    const int64_t most = std::max(3 * int64_t(query_time_) * group_, kWorkspace / (batch_heads * head_width));
    count = static_cast<int32_t>((kTasks - 1) / batch_heads + 1);
    for (split(tiles, distinct); count > 1 && rows > most; split(tiles, distinct)) count /= 2;
  }

  const Share& operator()(int32_t head, int32_t share) const { return shares_[head * count + share]; }
  int32_t tile(int32_t index) const { return order_[index]; }

  int32_t count;     // shares of each head
  int64_t rows = 0;  // rows of partial dq of the head that has most

 private:
  void split(const TilePlan& tiles, int32_t distinct) {
    shares_.clear();
    rows = 0;
    for (int32_t head = 0; head < distinct; ++head) {
      const int32_t begin = tiles.head_tiles[head], end = tiles.head_tiles[head + 1];
      const int64_t work = tiles.offset[end] - tiles.offset[begin];
      int64_t done = 0, offset = 0;
      int32_t tile = begin;
      for (int32_t share = 1; share <= count; ++share) {
        const int32_t first = tile;
        while (tile < end && (share == count || done * count < work * share)) done += visits(tiles, order_[tile++]);
        shares_.push_back(touched(tiles, first, tile, offset));
        offset += int64_t{shares_.back().queries()} * group_;
      }
      rows = std::max(rows, offset);
      find_own(shares_.end() - count, shares_.end());
    }
  }

  template <typename Iterator>
  static void find_own(Iterator begin, Iterator end) {
    for (Iterator share = begin; share != end; ++share) {
      share->own_begin = share->query_begin, share->own_end = share->query_end;
      for (Iterator other = begin; other != end; ++other) {
        if (other < share) share->own_begin = std::max(share->own_begin, other->query_end);
        if (other > share && other->query_end > 0) share->own_end = std::min(share->own_end, other->query_begin);
      }
    }
  }

  static int64_t visits(const TilePlan& tiles, int32_t tile) { return tiles.offset[tile + 1] - tiles.offset[tile]; }

  Share touched(const TilePlan& tiles, int32_t first, int32_t last, int64_t offset) const {
    const int32_t time = query_time_ / tiles.granule;
    int32_t low = INT32_MAX, high = -1;
    for (int32_t i = first; i < last; ++i) {
      const int32_t tile = order_[i];
      const int32_t *from = tiles.granules(tiles.offset[tile]), *to = tiles.granules(tiles.offset[tile + 1]);
      for (const int32_t* granule = from; granule < to; ++granule) {
        const int32_t query = group_ == 1 ? *granule : *granule % time;
        low = std::min(low, query), high = std::max(high, query);
      }
    }
    if (high < 0) return {first, last, 0, 0, 0, 0, offset};
    return {first, last, low * tiles.granule, (high + 1) * tiles.granule, 0, 0, offset};
  }

  const int32_t group_, query_time_;
  std::vector<int32_t> order_;
  std::vector<Share> shares_;
};

}  // namespace blocksparse
