#include "attention.h"
#include "mask.h"
#include "rows.h"
#include "tasks.h"

namespace blocksparse {
namespace {

// The running softmax of one strip: kStrip queries side by side in the lanes, keys down the rows.
struct Softmax {
  Vec shift[kStripVectors];  // 2^(score - shift) is summed; -inf before the first visible key
  Vec sum[kStripVectors];

  // Raises the shift when a score passes it by more than 8 (a factor of 256, harmless in float32), which after the
  // first tiles is rare: the output is then rescaled.
  void raise(const float* scores, int32_t begin, int32_t end, float* output, int32_t width) {
    for (int v = 0; v < kStripVectors; ++v) {
      Vec top = shift[v];
      for (int32_t key = begin; key < end; ++key) top = max(top, load(scores + key * kStrip + v * kLanes));
      if (!any(top > shift[v] + 8.0f)) continue;
      const Vec factor = exp2(shift[v] - top);
      const Vec keep = shift[v] == broadcast(-kInfinity) ? Vec{} : factor;
      shift[v] = top;
      sum[v] *= keep;
      for (int32_t c = 0; c < width; ++c) {
        float* lane = output + c * kStrip + v * kLanes;
        store(lane, load(lane) * keep);
      }
    }
  }

  // scores -> probabilities, unnormalised.
  void exponentiate(float* scores, int32_t begin, int32_t end) {
    for (int v = 0; v < kStripVectors; ++v) {
      const Vec start = shift[v] == broadcast(-kInfinity) ? Vec{} : shift[v];
      Vec total = sum[v];
      for (int32_t key = begin; key < end; ++key) {
        float* lane = scores + key * kStrip + v * kLanes;
        const Vec p = exp2(load(lane) - start);
        store(lane, p);
        total += p;
      }
      sum[v] = total;
    }
  }
};

template <typename T>
class Forward {
 public:
  Forward(const Shape& shape, const Plan& plan, const Inputs<T>& in, T* out, float* lse)
      : shape_(shape), plan_(plan), tiles_(plan.by_query), in_(in), out_(out), lse_(lse),
        head_width_(round_up(shape.head_dim, kLanes)), value_width_(round_up(shape.value_dim, kLanes)) {}

  int64_t tasks() const { return shape_.batch * shape_.heads * tiles_.most_row_tiles; }

  struct Buffers {
    Scratch scratch;
    float *rows, *query, *keys, *values, *scores, *output;
  };

  Buffers buffers() const {
    const int64_t strips = round_up(tiles_.row_tile, kStrip), wide = std::max(head_width_, value_width_);
    const int64_t sizes[] = {kStrip * wide, strips * head_width_, tiles_.column_tile * head_width_,
                             tiles_.column_tile * value_width_, int64_t(tiles_.column_tile) * kStrip,
                             strips * value_width_};
    int64_t total = 0;
    for (int64_t size : sizes) total += round_up(size, 16);
    Buffers b{Scratch(total)};
    float** parts[] = {&b.rows, &b.query, &b.keys, &b.values, &b.scores, &b.output};
    for (int i = 0; i < 6; ++i) *parts[i] = b.scratch.take(sizes[i]);
    return b;
  }

  void run(int64_t task, Buffers& b) const {
    const int32_t most = tiles_.most_row_tiles, index = task % most, head = task / most % shape_.heads;
    const int64_t batch = task / most / shape_.heads;
    const int32_t distinct = plan_.head_index[head], tile = tiles_.head_tiles[distinct] + index;
    if (tile >= tiles_.head_tiles[distinct + 1]) return;
    const Order query_order = plan_.query_order(head), key_order = plan_.key_order(head);
    const auto side = [&](auto* tensor, int32_t time, int32_t width, Order order) {
      return head_rows(tensor, batch, head, shape_.heads, time, width, order);
    };
    const auto q = side(in_.q, plan_.query_time, shape_.head_dim, query_order);
    const auto k = side(in_.k, plan_.key_time, shape_.head_dim, key_order);
    const auto v = side(in_.v, plan_.key_time, shape_.value_dim, key_order);
    const auto out = side(out_, plan_.query_time, shape_.value_dim, query_order);
    float* lse = lse_ + (batch * shape_.heads + head) * plan_.query_time;

    const int32_t first = tiles_.row_start[tile], count = tiles_.row_count[tile];
    Softmax softmax[128 / kStrip];
    start(q, first, count, softmax, b);
    for (int32_t column = tiles_.offset[tile]; column < tiles_.offset[tile + 1]; ++column) {
      const int32_t granules = tiles_.column_granules();
      gather(k, tiles_.granules(column), granules, tiles_.granule, b.keys, head_width_);
      gather(v, tiles_.granules(column), granules, tiles_.granule, b.values, value_width_);
      visit(tiles_.is_full(tile, column) ? nullptr : tiles_.mask_of(column), count, softmax, b);
    }
    finish(out, lse, query_order, first, count, softmax, b);
  }

 private:
  // Queries into lanes, scaled so that exp becomes exp2; the output starts at 0.
  void start(const HeadRows<const T>& q, int32_t first, int32_t count, Softmax* softmax, Buffers& b) const {
    Vec scale[kStripVectors];
    for (Vec& lane : scale) lane = broadcast(shape_.scale * kLog2e);
    for (int32_t row = 0, strip = 0; row < count; row += kStrip, ++strip) {
      const int32_t rows = std::min(kStrip, count - row);
      read_rows(q, first + row, rows, b.rows, head_width_);
      // Lanes past the tile take part in raise: they have to be the same whatever this thread did before.
      std::memset(b.rows + rows * head_width_, 0, (kStrip - rows) * head_width_ * sizeof(float));
      float* query = b.query + row * head_width_;
      transpose_in(b.rows, head_width_, head_width_, query);
      for (int64_t i = 0; i < head_width_ * kStrip; i += kLanes) store(query + i, load(query + i) * scale[0]);
      for (int v = 0; v < kStripVectors; ++v) softmax[strip].shift[v] = broadcast(-kInfinity), softmax[strip].sum[v] = Vec{};
    }
    std::memset(b.output, 0, round_up(count, kStrip) * value_width_ * sizeof(float));
  }

  // One column tile: scores, softmax, output += values^T probabilities, strip by strip in the first-level cache.
  void visit(const uint32_t* mask, int32_t count, Softmax* softmax, Buffers& b) const {
    for (int32_t row = 0, strip = 0; row < count; row += kStrip, ++strip) {
      int32_t begin = 0, end = tiles_.column_tile;
      const float* query = b.query + row * head_width_;
      float* output = b.output + row * value_width_;
      if (mask == nullptr) {
        scores(query, begin, end, b);
      } else {
        const StripMask seen(mask + row * tiles_.mask_words(), tiles_.mask_words(), count - row);
        begin = seen.begin, end = seen.end;
        scores(query, begin, end, b);
        for (int32_t key = begin; key < end; ++key) {
          for (int v = 0; v < kStripVectors; ++v) {
            float* lane = b.scores + key * kStrip + v * kLanes;
            store(lane, seen.select(key, v, load(lane), -kInfinity));
          }
        }
      }
      softmax[strip].raise(b.scores, begin, end, output, shape_.value_dim);
      softmax[strip].exponentiate(b.scores, begin, end);
      product<kStripVectors, true>({b.values + begin * value_width_, 1, value_width_}, b.scores + begin * kStrip, kStrip,
                                   shape_.value_dim, end - begin, output, kStrip);
    }
  }

  void scores(const float* query, int32_t begin, int32_t end, Buffers& b) const {
    product<kStripVectors, false>({b.keys + begin * head_width_, head_width_, 1}, query, kStrip, end - begin,
                                  shape_.head_dim, b.scores + begin * kStrip, kStrip);
  }

  void finish(const HeadRows<T>& out, float* lse, Order order, int32_t first, int32_t count, const Softmax* softmax,
              Buffers& b) const {
    for (int32_t row = 0, strip = 0; row < count; row += kStrip, ++strip) {
      Vec inverse[kStripVectors];
      for (int v = 0; v < kStripVectors; ++v) {
        const Vec sum = softmax[strip].sum[v];
        inverse[v] = sum == Vec{} ? Vec{} : 1.0f / sum;
      }
      transpose_out(b.output + row * value_width_, value_width_, inverse, b.rows, value_width_);
      for (int32_t i = 0; i < std::min(kStrip, count - row); ++i) {
        const float sum = softmax[strip].sum[i / kLanes][i % kLanes], shift = softmax[strip].shift[i / kLanes][i % kLanes];
        write_row(b.rows + i * value_width_, shape_.value_dim, out.row(first + row + i));
        lse[order(first + row + i)] = sum == 0.0f ? -kInfinity : shift * kLn2 + std::log(sum);
      }
    }
  }

  const Shape& shape_;
  const Plan& plan_;
  const TilePlan& tiles_;
  const Inputs<T>& in_;
  T* out_;
  float* lse_;
  const int64_t head_width_, value_width_;  // rounded up to whole registers
};

}  // namespace

template <typename T>
void attention_forward(const Shape& shape, const Plan& plan, const Inputs<T>& in, T* out, float* lse,
                       const Parallel& parallel) {
  const Forward<T> forward(shape, plan, in, out, lse);
  run_tasks(parallel, forward.tasks(), [&](const auto& take) {
    auto buffers = forward.buffers();
    for (int64_t task = take(); task >= 0; task = take()) forward.run(task, buffers);
  });
}

#define INSTANTIATE(T) \
  template void attention_forward(const Shape&, const Plan&, const Inputs<T>&, T*, float*, const Parallel&);
INSTANTIATE(float)
INSTANTIATE(Eigen::half)
INSTANTIATE(Eigen::bfloat16)
#undef INSTANTIATE

}  // namespace blocksparse
