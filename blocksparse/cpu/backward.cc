#include <algorithm>

#include "attention.h"
#include "bounds.h"
#include "key_tile.h"
#include "shares.h"
#include "tasks.h"
#include "visits.h"

namespace blocksparse {
namespace {

constexpr int32_t kChunk = 256;  // queries in a task of add_partials

template <typename T>
class Backward {
 public:
  Backward(const Shape& shape, const Plan& plan, const Inputs<T>& in, const Gradient<T>& gradient, bool onto,
           float* workspace)
      : shape_(shape),
        plan_(plan),
        tiles_(plan.by_key),
        in_(in),
        gradient_(gradient),
        onto_(onto),
        queries_(plan.query_time * plan.group()),
        head_width_(padded(shape.head_dim)),
        shares_(shares_of(shape, plan)),
        partial_(workspace) {}

  static Shares shares_of(const Shape& shape, const Plan& plan) {
    return Shares(plan, shape.batch * plan.key_heads, padded(shape.head_dim));
  }

  int64_t tasks() const { return batch_heads() * shares_.count; }
  int64_t adding_tasks() const { return shape_.batch * shape_.heads * chunks(); }

  // A task is one share of one key head of one batch row, heads side by side as they are in memory.
  void run(const std::function<int64_t()>& take) const {
    Work work(tiles_, shape_, plan_);
    for (int64_t task = take(); task >= 0;) {
      const int64_t next = take();
      run_share(task, next, &work);
      task = next;
    }
  }

  // dq of the queries that several shares touch: their partial sums are added in the order of the shares, so that
  // the bits do not depend on which thread was first.
  void add_partials(int64_t task) const {
    const int64_t batch_head = task / chunks() / plan_.group();  // a key head; this is about its reader's queries
    const int32_t reader = task / chunks() % plan_.group(), before = reader * plan_.query_time;
    const int32_t first = task % chunks() * kChunk, end = std::min(first + kChunk, plan_.query_time);
    const Head head = head_of(batch_head);
    const Share* shares = &shares_(plan_.key_index[batch_head % plan_.key_heads], 0);
    const Share* last = shares + shares_.count;
    if (std::any_of(shares, last, [=](const Share& share) { return share.owns(first, end); })) return;
    Eigen::ArrayXf sum(head_width_);
    for (int32_t row = first; row < end; ++row) {
      if (std::any_of(shares, last, [row](const Share& share) { return share.owns(row, row + 1); })) continue;
      if (head.dq.there(before + row, 1) == 0) continue;
      sum.setZero();
      if (onto_) read_row<T>(head.dq.row(before + row), shape_.head_dim, sum.data());
      for (const Share* share = shares; share < last; ++share) {
        if (!share->touches(row)) continue;
        const int64_t place = int64_t{reader} * share->queries() + row - share->query_begin;
        const float* part = partial(batch_head, *share) + place * head_width_;
        sum += Eigen::Map<const Eigen::ArrayXf>(part, head_width_);
      }
      write_row(sum.data(), shape_.head_dim, head.dq.row(before + row));
    }
  }

 private:
  struct Work : KeyTile {  // of one thread
    Work(const TilePlan& tiles, const Shape& shape, const Plan& plan)
        : KeyTile(tiles, shape.head_dim, shape.value_dim, shape.scale), visits(tiles), bounds(fills(shape, plan)) {}
    Visits visits;
    Bounds bounds;
    Gathered gathered;
    Ahead ahead;
  };

  struct Head {  // one key head of one batch row, and the queries of all heads that read it
    HeadRows<const T> q, k, v, out, dout;
    HeadRows<T> dq, dk, dv;
    HeadRows<const float> lse, dlse;
    HeadRows<const int32_t> query_segments, key_segments;
  };

  Head head_of(int64_t batch_head) const {
    const int64_t batch = batch_head / plan_.key_heads;
    const int32_t key_head = batch_head % plan_.key_heads, head = key_head * plan_.group();
    const Order query_order = plan_.query_order(head), key_order = plan_.key_order(head);
    const auto queries = [&](auto* tensor, int32_t width) {
      return head_rows(tensor, batch, head, shape_.heads, shape_.query_time, width, query_order);
    };
    const auto keys = [&](auto* tensor, int32_t width) {
      return head_rows(tensor, batch, key_head, plan_.key_heads, shape_.key_time, width, key_order);
    };
    const int32_t time = shape_.query_time;
    const auto numbers = [&](const float* tensor) {
      return HeadRows<const float>{tensor + batch_head * plan_.group() * time, 1, 1, query_order, time, time};
    };
    const int32_t head_dim = shape_.head_dim, value_dim = shape_.value_dim;
    return {queries(in_.q, head_dim),
            keys(in_.k, head_dim),
            keys(in_.v, value_dim),
            queries(gradient_.out, value_dim),
            queries(gradient_.dout, value_dim),
            queries(gradient_.dq, head_dim),
            keys(gradient_.dk, head_dim),
            keys(gradient_.dv, value_dim),
            numbers(gradient_.lse),
            numbers(gradient_.dlse),
            number_rows(in_.query_segments, batch, shape_.query_time, query_order),
            number_rows(in_.key_segments, batch, shape_.key_time, plan_.key_order(head))};
  }

  // A share while it runs.
  struct Run {
    Head head;
    QueryRows by_row;
    std::vector<bool> known;  // by granule: whether lse and delta of its queries are there
    int32_t skipped;          // granules from the last query that the share touches of one head to the next's first
  };

  int64_t batch_heads() const { return shape_.batch * plan_.key_heads; }
  int64_t batch_head_of(int64_t task) const { return task % batch_heads(); }
  const Share& share_of(int64_t task) const {
    return shares_(plan_.key_index[batch_head_of(task) % plan_.key_heads], task / batch_heads());
  }

  // dk and dv of the share's keys and its partial dq. Queries that no other share touches get their dq here.
  void run_share(int64_t task, int64_t next, Work* work) const {
    const Share& share = share_of(task);
    const int32_t begin = share.query_begin, rows = share.queries() * plan_.group();
    std::vector<float> lse(rows), delta(rows);
    float* sums = partial(batch_head_of(task), share);
    std::fill_n(sums, rows * head_width_, 0.0f);
    Run run = {head_of(batch_head_of(task)),
               {lse.data() - begin, delta.data() - begin, sums - begin * head_width_},
               std::vector<bool>(queries_ / tiles_.granule),
               (plan_.query_time - share.queries()) / tiles_.granule};
    for (int32_t i = share.first; i < share.last; ++i) {
      run_tile(shares_.tile(i), &run, work,
               [&] { i + 1 < share.last ? fetch_tile(run, shares_.tile(i + 1), work) : fetch_share(next, work); });
    }
    for (int32_t reader = 0; reader < plan_.group(); ++reader) {
      const int32_t first = reader * plan_.query_time, place = reader * share.queries() - first;
      for_plan_rows(run.head.dq, first + share.own_begin, first + share.own_end, [&](int32_t row, T* at) {
        put_row(run.by_row.dq + (row + place) * head_width_, shape_.head_dim, at, onto_);
      });
    }
  }

  // Where `by_row` has these queries: as in the plan, without those that the share does not touch.
  Granules placed(Granules queries, const Run& run, int32_t* numbers) const {
    if (plan_.group() == 1) return queries;
    const int32_t time = plan_.query_time / queries.size;
    for (int32_t i = 0; i < tiles_.column_tile / queries.size; ++i) {
      numbers[i] = queries.numbers[i] - queries.numbers[i] / time * run.skipped;
    }
    return {numbers, queries.size};
  }

  template <typename FetchNext>
  void run_tile(int32_t tile, Run* run, Work* work, const FetchNext& fetch_next) const {
    const Head& head = run->head;
    const int32_t count = tiles_.row_count[tile];
    Visits& visits = work->visits;
    visits.start(tile, head.key_segments, head.query_segments);
    if (onto_ && visits.size() == 0) return fetch_next();
    if (work->bounds.misses(head.k, rows(tile), count)) return fetch_next();
    work->start(count);
    for (int32_t row = 0; row < count; row += kLanes) {
      const int32_t stop = std::min(row + kLanes, count);
      read_rows(head.k, rows(tile), row, stop, work->staging, work->head_width);
      work->load_keys(row);
      read_rows(head.v, rows(tile), row, stop, work->staging, work->value_width);
      work->load_values(row);
    }
    for (int32_t visit = 0; visit < visits.size(); ++visit) {
      int32_t numbers[kMostRows / 8];
      const Granules queries = columns(visits[visit]), places = placed(queries, *run, numbers);
      if (work->bounds.misses(head.q, queries, tiles_.column_tile)) continue;
      learn(queries, places, run);
      gather(head, queries, work);
      work->ahead.clear();
      if (visit == 0) {
        work->ahead.add(head.dk, rows(tile), count);
        work->ahead.add(head.dv, rows(tile), count);
      }
      visit + 1 < visits.size() ? fetch(*run, columns(visits[visit + 1]), work) : fetch_next();
      const uint32_t* mask = visits.mask(visits[visit]);
      mask = work->bounds.mask(tiles_, mask, head.k, rows(tile), count, head.q, queries);
      work->visit(mask, places, run->by_row, &work->ahead);
    }
    for (int32_t row = 0; row < count; row += kLanes) {
      const int32_t stop = std::min(row + kLanes, count);
      work->finish_keys(row);
      write_rows(work->staging, work->head_width, rows(tile), row, stop, head.dk, onto_);
      work->finish_values(row);
      write_rows(work->staging, work->value_width, rows(tile), row, stop, head.dv, onto_);
    }
  }

  // lse and delta of the queries that the share meets for the first time.
  void learn(Granules queries, Granules places, Run* run) const {
    const Head& head = run->head;
    for (int32_t i = 0; i < tiles_.column_tile; i += queries.size) {
      const int32_t begin = queries(i), end = begin + queries.size, moved = places(i) - begin;
      if (run->known[begin / queries.size]) continue;
      run->known[begin / queries.size] = true;
      for_plan_rows(head.lse, begin, end, [&](int32_t row, const float* at) {
        run->by_row.lse[row + moved] = *at;
        run->by_row.delta[row + moved] = -head.dlse.data[at - head.lse.data];
      });
      for_plan_rows(head.out, begin, end, [&](int32_t row, const T* at) {
        run->by_row.delta[row + moved] += dot(at, head.dout.data + (at - head.out.data), shape_.value_dim);
      });
    }
  }

  void gather(const Head& head, Granules queries, Work* work) const {
    if (work->gathered.holds(head.q.data, queries, tiles_.column_tile)) return;
    work->gathered.set(head.q.data, queries);
    read_rows(head.q, queries, 0, tiles_.column_tile, work->queries, work->head_width);
    read_rows(head.dout, queries, 0, tiles_.column_tile, work->douts, work->value_width);
  }

  // What the first row tile of a share, a row tile, a column tile will read, to be fetched ahead.
  void fetch_share(int64_t task, Work* work) const {
    if (task < 0 || share_of(task).first == share_of(task).last) return;
    const Run run = {head_of(batch_head_of(task)), {}, std::vector<bool>(queries_ / tiles_.granule), 0};
    fetch_tile(run, shares_.tile(share_of(task).first), work);
  }

  void fetch_tile(const Run& run, int32_t tile, Work* work) const {
    work->ahead.add(run.head.k, rows(tile), tiles_.row_count[tile]);
    work->ahead.add(run.head.v, rows(tile), tiles_.row_count[tile]);
    if (tiles_.offset[tile] < tiles_.offset[tile + 1]) fetch(run, columns(tiles_.offset[tile]), work);
  }

  void fetch(const Run& run, Granules queries, Work* work) const {
    if (work->gathered.holds(run.head.q.data, queries, tiles_.column_tile)) return;
    work->ahead.add(run.head.q, queries, tiles_.column_tile);
    work->ahead.add(run.head.dout, queries, tiles_.column_tile);
    for (int32_t i = 0; i < tiles_.column_tile / queries.size; ++i) {
      if (run.known[queries.numbers[i]]) continue;
      work->ahead.add(run.head.out, {queries.numbers + i, queries.size}, queries.size);
      work->ahead.add(run.head.dq, {queries.numbers + i, queries.size}, queries.size);
    }
  }

  Granules rows(int32_t tile) const { return {tiles_.row_granules(tile), tiles_.granule}; }
  Granules columns(int32_t column) const { return {tiles_.granules(column), tiles_.granule}; }
  int64_t chunks() const { return (int64_t{plan_.query_time} + kChunk - 1) / kChunk; }
  float* partial(int64_t batch_head, const Share& share) const {
    return partial_ + (batch_head * shares_.rows + share.offset) * head_width_;
  }

  const Shape& shape_;
  const Plan& plan_;
  const TilePlan& tiles_;
  const Inputs<T>& in_;
  const Gradient<T>& gradient_;
  const bool onto_;
  const int32_t queries_;  // of all heads that read a key head
  const int64_t head_width_;
  const Shares shares_;
  float* partial_;  // [batch, key heads, shares_.rows, head_width_], in plan order
};

}  // namespace

int64_t backward_workspace(const Shape& shape, const Plan& plan) {
  const Shares shares = Backward<float>::shares_of(shape, plan);
  return shape.batch * plan.key_heads * shares.rows * padded(shape.head_dim);
}

template <typename T>
void attention_backward(const Shape& shape, const Plan& plan, const Inputs<T>& in, const Gradient<T>& gradient,
                        bool onto, float* workspace, const Parallel& parallel) {
  if (shape.query_time == 0 || shape.key_time == 0) {  // a plan has rows, and these tensors none to read
    if (onto) return;
    const int64_t queries = shape.batch * shape.query_time * shape.heads, keys = shape.batch * shape.key_time;
    std::fill_n(gradient.dq, queries * shape.head_dim, T(0));
    std::fill_n(gradient.dk, keys * plan.key_heads * shape.head_dim, T(0));
    std::fill_n(gradient.dv, keys * plan.key_heads * shape.value_dim, T(0));
    return;
  }
  const Backward<T> backward(shape, plan, in, gradient, onto, workspace);
  run_tasks(parallel, backward.tasks(), plan.key_heads, [&](const auto& take) { backward.run(take); });
  run_tasks(parallel, backward.adding_tasks(), 1, [&](const auto& take) {
    for (int64_t task = take(); task >= 0; task = take()) backward.add_partials(task);
  });
}

#define INSTANTIATE(T)                                                                                            \
  template void attention_backward(const Shape&, const Plan&, const Inputs<T>&, const Gradient<T>&, bool, float*, \
                                   const Parallel&);
INSTANTIATE(float)
INSTANTIATE(Eigen::half)
INSTANTIATE(Eigen::bfloat16)
#undef INSTANTIATE

}  // namespace blocksparse
