#include <algorithm>
#include <limits>

#include "attention.h"
#include "bounds.h"
#include "join.h"
#include "query_tile.h"
#include "tasks.h"
#include "visits.h"

namespace blocksparse {
namespace {

constexpr int32_t kRun = 4;  // neighbouring tiles of a head before another head's: they share keys

// A task is one row tile of one head of one batch row. Heads alternate after each run of tiles, since a row's heads lie
// side by side in memory; the tiles of a head come heaviest first.
template <typename T>
class Forward {
 public:
  Forward(const Shape& shape, const Plan& plan, const Inputs<T>& in, T* out, float* lse, bool onto)
      : shape_(shape), plan_(plan), tiles_(plan.by_query), in_(in), out_(out), lse_(lse), onto_(onto) {}

  int64_t tasks() const { return shape_.batch * shape_.heads * round_up(tiles_.most_row_tiles, kRun); }

  void run(const std::function<int64_t()>& take) const {
    Work work(tiles_, shape_, plan_);
    for (int64_t task = take(); task >= 0;) {
      const int64_t next = take();
      run_tile(tile_of(task), next < 0 ? Tile{} : tile_of(next), &work);
      task = next;
    }
  }

 private:
  struct Work : QueryTile {  // of one thread
    Work(const TilePlan& tiles, const Shape& shape, const Plan& plan)
        : QueryTile(tiles, shape.head_dim, shape.value_dim, shape.scale), visits(tiles), bounds(fills(shape, plan)) {}
    Visits visits;
    Bounds bounds;
    Gathered gathered;
    Ahead ahead;
  };

  struct Tile {
    int32_t number, count, begin, end;  // begin .. end: its column tiles
    Granules rows;
    HeadRows<const T> q, k, v;
    HeadRows<T> out;
    HeadRows<float> lse;
    HeadRows<const int32_t> query_segments, key_segments;
  };

  // Tasks are counted for the head that has most row tiles; where a head has fewer, the tile is empty.
  Tile tile_of(int64_t task) const {
    const int64_t batch_head = task / kRun % (shape_.batch * shape_.heads), batch = batch_head / shape_.heads;
    const int32_t head = batch_head % shape_.heads, distinct = plan_.head_index[head];
    const int32_t key_head = head / plan_.group(), key_heads = plan_.key_heads;
    const int32_t index = task / kRun / (shape_.batch * shape_.heads) * kRun + task % kRun;
    const int32_t number = tiles_.head_tiles[distinct] + index;
    if (number >= tiles_.head_tiles[distinct + 1]) return {};
    const Order query_order = plan_.query_order(head), key_order = plan_.key_order(head);
    return {number,
            tiles_.row_count[number],
            tiles_.offset[number],
            tiles_.offset[number + 1],
            {tiles_.row_granules(number), tiles_.granule},
            head_rows(in_.q, batch, head, shape_.heads, shape_.query_time, shape_.head_dim, query_order),
            head_rows(in_.k, batch, key_head, key_heads, shape_.key_time, shape_.head_dim, key_order),
            head_rows(in_.v, batch, key_head, key_heads, shape_.key_time, shape_.value_dim, key_order),
            head_rows(out_, batch, head, shape_.heads, shape_.query_time, shape_.value_dim, query_order),
            {lse_ + batch_head * shape_.query_time, 1, 1, query_order, shape_.query_time, shape_.query_time},
            number_rows(in_.query_segments, batch, shape_.query_time, query_order),
            number_rows(in_.key_segments, batch, shape_.key_time, key_order)};
  }

  void run_tile(const Tile& tile, const Tile& next, Work* work) const {
    if (tile.count == 0 || work->bounds.misses(tile.q, tile.rows, tile.count)) return;
    Visits& visits = work->visits;
    visits.start(tile.number, tile.query_segments, tile.key_segments);
    if (onto_ && visits.size() == 0) return;
    work->start(tile.count);
    for (int32_t row = 0; row < tile.count; row += kLanes) {
      read_rows(tile.q, tile.rows, row, std::min(row + kLanes, tile.count), work->staging, work->head_width);
      work->load_queries(row);
    }
    for (int32_t visit = 0; visit < visits.size(); ++visit) {
      if (work->bounds.misses(tile.k, columns(visits[visit]), tiles_.column_tile)) continue;
      gather(tile, columns(visits[visit]), work);
      work->ahead.clear();
      if (visit == 0) work->ahead.add(tile.out, tile.rows, tile.count);
      if (visit + 1 < visits.size()) {
        fetch(tile, columns(visits[visit + 1]), work);
      } else {
        work->ahead.add(next.q, next.rows, next.count);
        if (next.begin < next.end) fetch(next, columns(next.begin), work);
      }
      const uint32_t* mask = visits.mask(visits[visit]);
      mask = work->bounds.mask(tiles_, mask, tile.q, tile.rows, tile.count, tile.k, columns(visits[visit]));
      work->visit(mask, &work->ahead);
    }
    for (int32_t row = 0; row < tile.count; row += kLanes) {
      float lse[kLanes];
      const int32_t end = std::min(row + kLanes, tile.count);
      work->finish(row, lse);
      if (onto_) join_rows(tile, row, end, lse, work);
      write_rows(work->staging, work->value_width, tile.rows, row, end, tile.out);
      for_rows(tile.lse, tile.rows, row, end, [&](int32_t i, float* at) { *at = lse[i - row]; });
    }
  }

  // Joins rows row .. end, which stand in staging and lse, with what an earlier pass left in memory.
  void join_rows(const Tile& tile, int32_t row, int32_t end, float* lse, Work* work) const {
    JoinWeights weights[kLanes];
    for_rows(tile.lse, tile.rows, row, end,
             [&](int32_t i, const float* before) { weights[i - row] = join(*before, &lse[i - row]); });
    for_rows(tile.out, tile.rows, row, end, [&](int32_t i, const T* before) {
      const JoinWeights weight = weights[i - row];
      Eigen::Map<Eigen::ArrayXf> own(work->staging + (i - row) * work->value_width, shape_.value_dim);
      const Eigen::Map<const Eigen::Array<T, -1, 1>> old(before, shape_.value_dim);
      own = weight.own * own + weight.before * old.template cast<float>();
    });
  }

  Granules columns(int32_t column) const { return {tiles_.granules(column), tiles_.granule}; }

  void gather(const Tile& tile, Granules keys, Work* work) const {
    if (work->gathered.holds(tile.k.data, keys, tiles_.column_tile)) return;
    work->gathered.set(tile.k.data, keys);
    read_rows(tile.k, keys, 0, tiles_.column_tile, work->keys, work->head_width);
    read_rows(tile.v, keys, 0, tiles_.column_tile, work->values, work->value_width);
  }

  void fetch(const Tile& tile, Granules keys, Work* work) const {
    if (work->gathered.holds(tile.k.data, keys, tiles_.column_tile)) return;
    work->ahead.add(tile.k, keys, tiles_.column_tile);
    work->ahead.add(tile.v, keys, tiles_.column_tile);
  }

  const Shape& shape_;
  const Plan& plan_;
  const TilePlan& tiles_;
  const Inputs<T>& in_;
  T* out_;
  float* lse_;
  const bool onto_;
};

}  // namespace

template <typename T>
void attention_forward(const Shape& shape, const Plan& plan, const Inputs<T>& in, T* out, float* lse, bool onto,
                       const Parallel& parallel) {
  if (shape.query_time == 0 || shape.key_time == 0) {  // a plan has rows, and these tensors none to read
    if (onto) return;
    const int64_t queries = shape.batch * shape.query_time * shape.heads;
    std::fill_n(out, queries * shape.value_dim, T(0));
    std::fill_n(lse, queries, -std::numeric_limits<float>::infinity());
    return;
  }
  const Forward<T> forward(shape, plan, in, out, lse, onto);
  run_tasks(parallel, forward.tasks(), kRun * shape.heads, [&](const auto& take) { forward.run(take); });
}

#define INSTANTIATE(T) \
  template void attention_forward(const Shape&, const Plan&, const Inputs<T>&, T*, float*, bool, const Parallel&);
INSTANTIATE(float)
INSTANTIATE(Eigen::half)
INSTANTIATE(Eigen::bfloat16)
#undef INSTANTIATE

}  // namespace blocksparse
