#include "attention.h"
#include "query_tile.h"
#include "rows.h"
#include "tasks.h"

namespace blocksparse {
namespace {

// A task is one row tile of one head of one batch row, heads in order so that a head's keys stay in the cache; the
// tiles of a head come heaviest first.
template <typename T>
class Forward {
 public:
  Forward(const Shape& shape, const Plan& plan, const Inputs<T>& in, T* out, float* lse)
      : shape_(shape), plan_(plan), in_(in), out_(out), lse_(lse) {}

  int64_t tasks() const { return shape_.batch * shape_.heads * plan_.by_query.most_row_tiles; }

  void run(int64_t task, QueryTile* work) const {
    const TilePlan& tiles = plan_.by_query;
    const int64_t batch_head = task / tiles.most_row_tiles, batch = batch_head / shape_.heads;
    const int32_t head = batch_head % shape_.heads, distinct = plan_.head_index[head];
    const int32_t tile = tiles.head_tiles[distinct] + task % tiles.most_row_tiles;
    if (tile >= tiles.head_tiles[distinct + 1]) return;
    const Order query_order = plan_.query_order(head), key_order = plan_.key_order(head);
    const auto q = head_rows(in_.q, batch, head, shape_.heads, plan_.query_time, shape_.head_dim, query_order);
    const auto k = head_rows(in_.k, batch, head, shape_.heads, plan_.key_time, shape_.head_dim, key_order);
    const auto v = head_rows(in_.v, batch, head, shape_.heads, plan_.key_time, shape_.value_dim, key_order);
    const auto out = head_rows(out_, batch, head, shape_.heads, plan_.query_time, shape_.value_dim, query_order);
    const HeadRows<float> lse = {lse_ + batch_head * plan_.query_time, 1, 1, query_order};

    const Granules rows = {tiles.row_granules(tile), tiles.granule};
    const int32_t count = tiles.row_count[tile];
    work->start(count);
    for (int32_t row = 0; row < count; row += kStrip) {
      read_rows(q, rows, row, std::min(row + kStrip, count), work->staging, work->head_width);
      work->load_queries(row, shape_.scale);
    }
    for (int32_t column = tiles.offset[tile]; column < tiles.offset[tile + 1]; ++column) {
      const Granules columns = {tiles.granules(column), tiles.granule};
      read_rows(k, columns, 0, tiles.column_tile, work->keys, work->head_width);
      read_rows(v, columns, 0, tiles.column_tile, work->values, work->value_width);
      work->visit(tiles.is_full(tile, column) ? nullptr : tiles.mask_of(column));
    }
    for (int32_t row = 0; row < count; row += kStrip) {
      float strip_lse[kStrip];
      const int32_t end = std::min(row + kStrip, count);
      work->finish(row, strip_lse);
      write_rows(work->staging, work->value_width, rows, row, end, out);
      for_rows(lse, rows, row, end, [&](int32_t i, float* at) { *at = strip_lse[i - row]; });
    }
  }

 private:
  const Shape& shape_;
  const Plan& plan_;
  const Inputs<T>& in_;
  T* out_;
  float* lse_;
};

}  // namespace

template <typename T>
void attention_forward(const Shape& shape, const Plan& plan, const Inputs<T>& in, T* out, float* lse,
                       const Parallel& parallel) {
  const Forward<T> forward(shape, plan, in, out, lse);
  run_tasks(parallel, forward.tasks(), [&](const auto& take) {
    QueryTile work(plan.by_query, shape.head_dim, shape.value_dim);
    for (int64_t task = take(); task >= 0; task = take()) forward.run(task, &work);
  });
}

#define INSTANTIATE(T) \
  template void attention_forward(const Shape&, const Plan&, const Inputs<T>&, T*, float*, const Parallel&);
INSTANTIATE(float)
INSTANTIATE(Eigen::half)
INSTANTIATE(Eigen::bfloat16)
#undef INSTANTIATE

}  // namespace blocksparse
