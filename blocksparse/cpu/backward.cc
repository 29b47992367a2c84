#include "attention.h"
#include "key_tile.h"
#include "segments.h"
#include "tasks.h"

namespace blocksparse {
namespace {

constexpr int32_t kChunk = 256;  // rows in a task of the pass that adds

template <typename T>
class Backward {
 public:
  Backward(const Shape& shape, const Plan& plan, const Inputs<T>& in, const Gradient<T>& gradient, float* workspace)
      : shape_(shape), plan_(plan), in_(in), gradient_(gradient),
        head_width_(round_up(shape.head_dim, kLanes)),
        segments_(plan.by_key, plan.distinct, plan.query_time, shape.batch * shape.heads, head_width_),
        partial_(workspace) {}

  int64_t tasks() const { return shape_.batch * shape_.heads * segments_.count; }
  int64_t adding_tasks() const { return shape_.batch * shape_.heads * chunks(); }

  // One segment: its keys' dk and dv, and its partial dq; dq itself where no other segment adds to it.
  void run(int64_t task, KeyTile* work) const {
    const int64_t batch_head = task / segments_.count;
    const Head head = head_of(batch_head);
    const Segment& segment = segments_(plan_.head_index[batch_head % shape_.heads], task % segments_.count);
    const int32_t begin = segment.query_begin, end = segment.query_end;
    std::vector<float> lse(end - begin), delta(end - begin);
    for_plan_rows(head.lse, begin, end, [&](int32_t row, const float* at) { lse[row - begin] = *at * kLog2e; });
    for_plan_rows(head.dlse, begin, end, [&](int32_t row, const float* at) { delta[row - begin] = -*at; });
    for_plan_rows(head.out, begin, end, [&](int32_t row, const T* at) {
      delta[row - begin] += dot(at, head.dout.data + (at - head.out.data), shape_.value_dim);
    });
    float* sums = partial(batch_head, segment);
    std::memset(sums, 0, sizeof(float) * (end - begin) * head_width_);
    const QueryRows by_row = {lse.data() - begin, delta.data() - begin, sums - begin * head_width_};
    for (int32_t i = segment.first; i < segment.last; ++i) run_tile(head, segments_.tile(i), by_row, work);
    for_plan_rows(head.dq, segment.own_begin, segment.own_end, [&](int32_t row, T* at) {
      write_row(by_row.dq + row * head_width_, shape_.head_dim, at);
    });
  }

  // dq of the other queries: the partial sums, segment by segment.
  void add_partials(int64_t task) const {
    const int64_t batch_head = task / chunks();
    const int32_t first = task % chunks() * kChunk;
    const Head head = head_of(batch_head);
    const Segment* segments = &segments_(plan_.head_index[batch_head % shape_.heads], 0);
    const Segment* last = segments + segments_.count;
    Eigen::ArrayXf sum(head_width_);
    for (int32_t row = first; row < std::min(first + kChunk, plan_.query_time); ++row) {
      if (std::any_of(segments, last, [row](const Segment& segment) { return segment.owns(row); })) continue;
      sum.setZero();
      for (const Segment* segment = segments; segment < last; ++segment) {
        if (!segment->touches(row)) continue;
        const float* part = partial(batch_head, *segment) + (row - segment->query_begin) * head_width_;
        sum += Eigen::Map<const Eigen::ArrayXf>(part, head_width_);
      }
      write_row(sum.data(), shape_.head_dim, head.dq.row(row));
    }
  }

 private:
  struct Head {  // of one batch row
    HeadRows<const T> q, k, v, out, dout;
    HeadRows<T> dq, dk, dv;
    HeadRows<const float> lse, dlse;
  };

  Head head_of(int64_t batch_head) const {
    const int64_t batch = batch_head / shape_.heads;
    const int32_t head = batch_head % shape_.heads;
    const Order query_order = plan_.query_order(head);
    const auto queries = [&](auto* tensor, int32_t width) {
      return head_rows(tensor, batch, head, shape_.heads, plan_.query_time, width, query_order);
    };
    const auto keys = [&](auto* tensor, int32_t width) {
      return head_rows(tensor, batch, head, shape_.heads, plan_.key_time, width, plan_.key_order(head));
    };
    const auto numbers = [&](const float* tensor) {
      return HeadRows<const float>{tensor + batch_head * plan_.query_time, 1, 1, query_order};
    };
    const int32_t head_dim = shape_.head_dim, value_dim = shape_.value_dim;
    return {queries(in_.q, head_dim),           keys(in_.k, head_dim),          keys(in_.v, value_dim),
            queries(gradient_.out, value_dim),  queries(gradient_.dout, value_dim),
            queries(gradient_.dq, head_dim),    keys(gradient_.dk, head_dim),   keys(gradient_.dv, value_dim),
            numbers(gradient_.lse),             numbers(gradient_.dlse)};
  }

  void run_tile(const Head& head, int32_t tile, const QueryRows& by_row, KeyTile* work) const {
    const TilePlan& tiles = plan_.by_key;
    const Granules rows = {tiles.row_granules(tile), tiles.granule};
    const int32_t count = tiles.row_count[tile];
    work->start(count);
    for (int32_t row = 0; row < count; row += kStrip) {
      const int32_t end = std::min(row + kStrip, count);
      read_rows(head.k, rows, row, end, work->staging, work->head_width);
      work->load_keys(row);
      read_rows(head.v, rows, row, end, work->staging, work->value_width);
      work->load_values(row);
    }
    for (int32_t column = tiles.offset[tile]; column < tiles.offset[tile + 1]; ++column) {
      const Granules columns = {tiles.granules(column), tiles.granule};
      read_rows(head.q, columns, 0, tiles.column_tile, work->queries, work->head_width);
      read_rows(head.dout, columns, 0, tiles.column_tile, work->douts, work->value_width);
      work->visit(tiles.is_full(tile, column) ? nullptr : tiles.mask_of(column), columns, by_row);
    }
    for (int32_t row = 0; row < count; row += kStrip) {
      const int32_t end = std::min(row + kStrip, count);
      work->finish_keys(row);
      write_rows(work->staging, work->head_width, rows, row, end, head.dk);
      work->finish_values(row);
      write_rows(work->staging, work->value_width, rows, row, end, head.dv);
    }
  }

  int64_t chunks() const { return (plan_.query_time + kChunk - 1) / kChunk; }
  float* partial(int64_t batch_head, const Segment& segment) const {
    return partial_ + (batch_head * segments_.rows + segment.offset) * head_width_;
  }

  const Shape& shape_;
  const Plan& plan_;
  const Inputs<T>& in_;
  const Gradient<T>& gradient_;
  const int64_t head_width_;
  const Segments segments_;
  float* partial_;  // [batch, heads, segments_.rows, head_width_], in plan order
};

}  // namespace

int64_t backward_workspace(const Shape& shape, const Plan& plan) {
  const int64_t batch_heads = shape.batch * shape.heads, head_width = round_up(shape.head_dim, kLanes);
  const Segments segments(plan.by_key, plan.distinct, plan.query_time, batch_heads, head_width);
  return batch_heads * segments.rows * head_width;
}

template <typename T>
void attention_backward(const Shape& shape, const Plan& plan, const Inputs<T>& in, const Gradient<T>& gradient,
                        float* workspace, const Parallel& parallel) {
  const Backward<T> backward(shape, plan, in, gradient, workspace);
  run_tasks(parallel, backward.tasks(), [&](const auto& take) {
    KeyTile work(plan.by_key, shape.head_dim, shape.value_dim, shape.scale);
    for (int64_t task = take(); task >= 0; task = take()) backward.run(task, &work);
  });
  run_tasks(parallel, backward.adding_tasks(), [&](const auto& take) {
    for (int64_t task = take(); task >= 0; task = take()) backward.add_partials(task);
  });
}

#define INSTANTIATE(T)                                                                                      \
  template void attention_backward(const Shape&, const Plan&, const Inputs<T>&, const Gradient<T>&, float*, \
                                   const Parallel&);
INSTANTIATE(float)
INSTANTIATE(Eigen::half)
INSTANTIATE(Eigen::bfloat16)
#undef INSTANTIATE

}  // namespace blocksparse
