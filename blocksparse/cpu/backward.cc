#include "attention.h"
#include "mask.h"
#include "rows.h"
#include "segments.h"
#include "tasks.h"

namespace blocksparse {
namespace {

constexpr int32_t kChunk = 256;  // rows in a task of the two passes that move memory only

// One pass over key tiles, five products a tile: with keys in the lanes and queries down the rows,
//   p = exp(scale q k^T - lse), ds = p (dout v^T - delta), dv += p^T dout, dk += scale ds^T q, dq += scale ds k.
template <typename T>
class Backward {
 public:
  Backward(const Shape& shape, const Plan& plan, const Inputs<T>& in, const Gradient<T>& gradient, float* workspace)
      : shape_(shape), plan_(plan), tiles_(plan.by_key), in_(in), gradient_(gradient),
        segments_(plan.by_key, plan.distinct, plan.query_time, shape.batch * shape.heads),
        head_width_(round_up(shape.head_dim, kLanes)), value_width_(round_up(shape.value_dim, kLanes)),
        delta_(workspace), partial_(workspace + round_up(shape.batch * shape.heads * plan.query_time, 16)) {}

  int64_t tasks() const { return shape_.batch * shape_.heads * segments_.count; }
  int64_t row_tasks() const { return shape_.batch * shape_.heads * chunks(); }

  struct Buffers {
    Scratch scratch;
    float *rows, *keys, *keys_t, *values_t, *dkeys, *dvalues, *queries, *douts, *lse, *delta, *p, *ds;
  };

  Buffers buffers() const {
    const int64_t strips = round_up(tiles_.row_tile, kStrip), columns = tiles_.column_tile;
    const int64_t wide = std::max(head_width_, value_width_);
    const int64_t sizes[] = {kStrip * wide, strips * head_width_, strips * head_width_, strips * value_width_,
                             strips * head_width_, strips * value_width_, columns * head_width_,
                             columns * value_width_, columns, columns, columns * kStrip, columns * kStrip};
    int64_t total = 0;
    for (int64_t size : sizes) total += round_up(size, 16);
    Buffers b{Scratch(total)};
    float** parts[] = {&b.rows, &b.keys, &b.keys_t, &b.values_t, &b.dkeys, &b.dvalues,
                       &b.queries, &b.douts, &b.lse, &b.delta, &b.p, &b.ds};
    for (size_t i = 0; i < std::size(sizes); ++i) *parts[i] = b.scratch.take(sizes[i]);
    return b;
  }

  // delta = sum over the row of dout * out, less dlse.
  void subtract(int64_t task) const {
    const int64_t batch_head = task / chunks(), first = task % chunks() * kChunk;
    const int64_t batch = batch_head / shape_.heads, head = batch_head % shape_.heads, width = shape_.value_dim;
    const int64_t last = std::min<int64_t>(first + kChunk, plan_.query_time);
    using Row = Eigen::Map<const Eigen::Array<T, -1, 1>>;
    for (int64_t row = first; row < last; ++row) {
      const int64_t at = ((batch * plan_.query_time + row) * shape_.heads + head) * width;
      const int64_t lane = batch_head * plan_.query_time + row;
      const Row out(gradient_.out + at, width), dout(gradient_.dout + at, width);
      delta_[lane] = (out.template cast<float>() * dout.template cast<float>()).sum() - gradient_.dlse[lane];
    }
  }

  void run(int64_t task, Buffers& b) const {
    const int64_t batch_head = task / segments_.count, batch = batch_head / shape_.heads;
    const int32_t head = batch_head % shape_.heads, distinct = plan_.head_index[head];
    const Segment& segment = segments_(distinct, task % segments_.count);
    const Order query_order = plan_.query_order(head), key_order = plan_.key_order(head);
    const auto side = [&](auto* tensor, int32_t time, int32_t width, Order order) {
      return head_rows(tensor, batch, head, shape_.heads, time, width, order);
    };
    const Head h = {side(in_.q, plan_.query_time, shape_.head_dim, query_order),
                    side(in_.k, plan_.key_time, shape_.head_dim, key_order),
                    side(in_.v, plan_.key_time, shape_.value_dim, key_order),
                    side(gradient_.dout, plan_.query_time, shape_.value_dim, query_order),
                    side(gradient_.dk, plan_.key_time, shape_.head_dim, key_order),
                    side(gradient_.dv, plan_.key_time, shape_.value_dim, key_order),
                    gradient_.lse + batch_head * plan_.query_time, delta_ + batch_head * plan_.query_time,
                    partial(batch_head, segment) - segment.query_begin * head_width_};
    std::memset(partial(batch_head, segment), 0, (segment.query_end - segment.query_begin) * head_width_ * sizeof(float));
    for (int32_t i = segment.first; i < segment.last; ++i) {
      const int32_t tile = segments_.tile(i), first = tiles_.row_start[tile], count = tiles_.row_count[tile];
      start(h, first, count, b);
      for (int32_t column = tiles_.offset[tile]; column < tiles_.offset[tile + 1]; ++column) {
        const int32_t* granules = tiles_.granules(column);
        collect(h, granules, b);
        visit(tiles_.is_full(tile, column) ? nullptr : tiles_.mask_of(column), granules, count, h.dq, b);
      }
      finish(h, first, count, b);
    }
  }

  // dq = the partial sums, segment by segment.
  void add(int64_t task) const {
    const int64_t batch_head = task / chunks(), batch = batch_head / shape_.heads;
    const int32_t head = batch_head % shape_.heads, first = task % chunks() * kChunk;
    const auto dq = head_rows(gradient_.dq, batch, head, shape_.heads, plan_.query_time, shape_.head_dim,
                              plan_.query_order(head));
    Eigen::ArrayXf sum(head_width_);
    for (int32_t row = first; row < std::min(first + kChunk, plan_.query_time); ++row) {
      sum.setZero();
      for (int32_t i = 0; i < segments_.count; ++i) {
        const Segment& segment = segments_(plan_.head_index[head], i);
        if (row < segment.query_begin || row >= segment.query_end) continue;
        const float* part = partial(batch_head, segment) + (row - segment.query_begin) * head_width_;
        sum += Eigen::Map<const Eigen::ArrayXf>(part, head_width_);
      }
      write_row(sum.data(), shape_.head_dim, dq.row(row));
    }
  }

 private:
  struct Head {
    HeadRows<const T> q, k, v, dout;
    HeadRows<T> dk, dv;
    const float *lse, *delta;  // in tensor order
    float* dq;                 // the segment's partial, indexed by plan row
  };

  int64_t chunks() const { return (plan_.query_time + kChunk - 1) / kChunk; }
  float* partial(int64_t batch_head, const Segment& segment) const {
    return partial_ + (batch_head * segments_.rows + segment.offset) * head_width_;
  }

  // Keys and values of the row tile, into lanes; their gradients start at 0.
  void start(const Head& h, int32_t first, int32_t count, Buffers& b) const {
    for (int32_t row = 0; row < count; row += kStrip) {
      const int32_t rows = std::min(kStrip, count - row);
      float* keys = b.keys + row * head_width_;
      read_rows(h.k, first + row, rows, keys, head_width_);
      for (int64_t i = 0; i < rows * head_width_; i += kLanes) store(keys + i, load(keys + i) * shape_.scale);
      float* keys_t = b.keys_t + row * head_width_;
      transpose_in(keys, head_width_, head_width_, keys_t);
      for (int64_t i = 0; i < head_width_ * kStrip; i += kLanes) store(keys_t + i, load(keys_t + i) * kLog2e);
      // A query that does not see a key has ds = 0 for it, and 0 * NaN would reach its dq. One that does has ds = NaN.
      for (int64_t i = 0; i < rows * head_width_; i += kLanes) {
        const Vec key = load(keys + i);
        store(keys + i, key - key == Vec{} ? key : Vec{});
      }
      read_rows(h.v, first + row, rows, b.rows, value_width_);
      transpose_in(b.rows, value_width_, value_width_, b.values_t + row * value_width_);
    }
    std::memset(b.dkeys, 0, round_up(count, kStrip) * head_width_ * sizeof(float));
    std::memset(b.dvalues, 0, round_up(count, kStrip) * value_width_ * sizeof(float));
  }

  // Queries of a column tile, with what is known of each.
  void collect(const Head& h, const int32_t* granules, Buffers& b) const {
    gather(h.q, granules, tiles_.column_granules(), tiles_.granule, b.queries, head_width_);
    gather(h.dout, granules, tiles_.column_granules(), tiles_.granule, b.douts, value_width_);
    for (int32_t column = 0; column < tiles_.column_tile; ++column) {
      const int64_t row = h.q.order(granules[column / tiles_.granule] * tiles_.granule + column % tiles_.granule);
      b.lse[column] = h.lse[row] * kLog2e;
      b.delta[column] = h.delta[row];
    }
  }

  void visit(const uint32_t* mask, const int32_t* granules, int32_t count, float* dq, Buffers& b) const {
    for (int32_t row = 0; row < count; row += kStrip) {
      if (mask == nullptr) {
        visit_strip<false>(StripMask(tiles_.column_tile), granules, row, count, dq, b);
      } else {
        const StripMask seen(mask + row * tiles_.mask_words(), tiles_.mask_words(), count - row);
        visit_strip<true>(seen, granules, row, count, dq, b);
      }
    }
  }

  template <bool masked>
  void visit_strip(const StripMask& seen, const int32_t* granules, int32_t row, int32_t count, float* dq,
                   Buffers& b) const {
    const int32_t begin = seen.begin, rows = seen.end - seen.begin;
    const float *queries = b.queries + begin * head_width_, *douts = b.douts + begin * value_width_;
    float *p = b.p + begin * kStrip, *ds = b.ds + begin * kStrip;
    product<kStripVectors, false>({queries, head_width_, 1}, b.keys_t + row * head_width_, kStrip, rows,
                                  shape_.head_dim, p, kStrip);
    product<kStripVectors, false>({douts, value_width_, 1}, b.values_t + row * value_width_, kStrip, rows,
                                  shape_.value_dim, ds, kStrip);
    for (int32_t column = begin; column < seen.end; ++column) {
      for (int v = 0; v < kStripVectors; ++v) {
        float *p_at = b.p + column * kStrip + v * kLanes, *ds_at = b.ds + column * kStrip + v * kLanes;
        Vec weight = exp2(load(p_at) - b.lse[column]), slope = weight * (load(ds_at) - b.delta[column]);
        if constexpr (masked) {
          weight = seen.select(column, v, weight, 0.0f);
          slope = seen.select(column, v, slope, 0.0f);
        }
        store(p_at, weight);
        store(ds_at, slope);
      }
    }
    product<kStripVectors, true>({douts, 1, value_width_}, p, kStrip, shape_.value_dim, rows,
                                 b.dvalues + row * value_width_, kStrip);
    product<kStripVectors, true>({queries, 1, head_width_}, ds, kStrip, shape_.head_dim, rows,
                                 b.dkeys + row * head_width_, kStrip);
    const int32_t keys = std::min(kStrip, count - row);
    for (int32_t column = begin; column < seen.end; column += kRows) {
      const int32_t query = granules[column / tiles_.granule] * tiles_.granule + column % tiles_.granule;
      add_dq({b.ds + column * kStrip, kStrip, 1}, b.keys + row * head_width_, keys, dq + query * head_width_);
    }
  }

  // dq[8][head_dim] += ds[8][keys] keys[keys][head_dim].
  void add_dq(Left ds, const float* keys, int32_t count, float* dq) const {
    int64_t column = 0;
    for (; column + kStrip <= head_width_; column += kStrip) {
      product_block<kStripVectors, true>(ds, keys + column, head_width_, count, dq + column, head_width_);
    }
    if (column < head_width_) product_block<1, true>(ds, keys + column, head_width_, count, dq + column, head_width_);
  }

  void finish(const Head& h, int32_t first, int32_t count, Buffers& b) const {
    Vec scale[kStripVectors], one[kStripVectors];
    for (int v = 0; v < kStripVectors; ++v) scale[v] = broadcast(shape_.scale), one[v] = broadcast(1.0f);
    for (int32_t row = 0; row < count; row += kStrip) {
      const int32_t rows = std::min(kStrip, count - row);
      transpose_out(b.dkeys + row * head_width_, head_width_, scale, b.rows, head_width_);
      for (int32_t i = 0; i < rows; ++i) write_row(b.rows + i * head_width_, shape_.head_dim, h.dk.row(first + row + i));
      transpose_out(b.dvalues + row * value_width_, value_width_, one, b.rows, value_width_);
      for (int32_t i = 0; i < rows; ++i) write_row(b.rows + i * value_width_, shape_.value_dim, h.dv.row(first + row + i));
    }
  }

  const Shape& shape_;
  const Plan& plan_;
  const TilePlan& tiles_;
  const Inputs<T>& in_;
  const Gradient<T>& gradient_;
  const Segments segments_;
  const int64_t head_width_, value_width_;  // rounded up to whole registers
  float *delta_, *partial_;
};

}  // namespace

int64_t backward_workspace(const Shape& shape, const Plan& plan) {
  const int64_t batch_heads = shape.batch * shape.heads;
  const Segments segments(plan.by_key, plan.distinct, plan.query_time, batch_heads);
  return round_up(batch_heads * plan.query_time, 16) + batch_heads * segments.rows * round_up(shape.head_dim, kLanes);
}

template <typename T>
void attention_backward(const Shape& shape, const Plan& plan, const Inputs<T>& in, const Gradient<T>& gradient,
                        float* workspace, const Parallel& parallel) {
  const Backward<T> backward(shape, plan, in, gradient, workspace);
  run_tasks(parallel, backward.row_tasks(), [&](const auto& take) {
    for (int64_t task = take(); task >= 0; task = take()) backward.subtract(task);
  });
  run_tasks(parallel, backward.tasks(), [&](const auto& take) {
    auto buffers = backward.buffers();
    for (int64_t task = take(); task >= 0; task = take()) backward.run(task, buffers);
  });
  run_tasks(parallel, backward.row_tasks(), [&](const auto& take) {
    for (int64_t task = take(); task >= 0; task = take()) backward.add(task);
  });
}

#define INSTANTIATE(T)                                                                                            \
  template void attention_backward(const Shape&, const Plan&, const Inputs<T>&, const Gradient<T>&, float*,       \
                                   const Parallel&);
INSTANTIATE(float)
INSTANTIATE(Eigen::half)
INSTANTIATE(Eigen::bfloat16)
#undef INSTANTIATE

}  // namespace blocksparse
