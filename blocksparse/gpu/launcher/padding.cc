#include "padding.h"

#include <cstring>
#include <vector>

#include "../../cpu/plan_words.h"

namespace blocksparse::gpu {
namespace {

// A tensor is `count` runs of `time` rows; a copy has runs of `whole` rows.
struct Rows {
  int64_t count, bytes, time, whole;  // bytes: of a row

  int64_t run() const { return time * bytes; }
  int64_t whole_run() const { return whole * bytes; }
};

constexpr unsigned char kNobody = 0x80;  // four of them are a segment number that no position has

class Padding {
 public:
  Padding(const Driver& driver, Handle stream, const Allocate& allocate)
      : driver_(driver), stream_(stream), allocate_(allocate) {}

  // `tensor` becomes a copy. read: with the tensor's content, and zeros behind it. written: what the kernels leave in
  // the copy goes back.
  void replace(const void** tensor, const Rows& rows, bool read, bool written, unsigned char fill = 0) {
    if (rows.time == rows.whole || !status.ok()) return;
    void* copy = allocate_(rows.count * rows.whole_run());
    if (copy == nullptr) {
      status = absl::ResourceExhaustedError("no memory for copies as long as the plan");
      return;
    }
    if (read) {
      move(*tensor, rows.run(), copy, rows.whole_run(), rows);
      clear(copy, rows, fill);
    }
    if (written) back_.push_back({copy, *tensor, rows});
    *tensor = copy;
  }
  void replace(void** tensor, const Rows& rows, bool read, bool written) {
    replace(const_cast<const void**>(tensor), rows, read, written);
  }

  void give_back() {
    for (const Back& back : back_) move(back.copy, back.rows.whole_run(), back.tensor, back.rows.run(), back.rows);
  }

  absl::Status status;

 private:
  struct Back {
    const void *copy, *tensor;
    Rows rows;
  };

  static DevicePointer address(const void* data) { return reinterpret_cast<DevicePointer>(data); }

  void move(const void* from, int64_t from_pitch, const void* to, int64_t to_pitch, const Rows& rows) {
    if (!status.ok() || rows.run() == 0) return;
    Copy2D copy{};
    copy.from_kind = copy.to_kind = kDeviceMemory;
    copy.from = address(from), copy.from_pitch = from_pitch;
    copy.to = address(to), copy.to_pitch = to_pitch;
    copy.width = rows.run(), copy.height = rows.count;
    status = driver_.check(driver_.copy_rows(&copy, stream_), "copying rows");
  }

  void clear(void* copy, const Rows& rows, unsigned char fill) {
    if (!status.ok()) return;
    status = driver_.check(driver_.set_rows(address(copy) + rows.run(), rows.whole_run(), fill,
                                            rows.whole_run() - rows.run(), rows.count, stream_),
                           "clearing rows");
  }

  const Driver& driver_;
  const Handle stream_;
  const Allocate& allocate_;
  std::vector<Back> back_;
};

int64_t element_bytes(const char* dtype) { return std::strcmp(dtype, "f16") && std::strcmp(dtype, "bf16") ? 4 : 2; }

}  // namespace

bool fills_plan(const Call& call) {
  return call.shape.query_time == call.header[kQueryTime] && call.shape.key_time == call.header[kKeyTime];
}

absl::Status run_padded(const Driver& driver, const Call& call, Handle stream, const Allocate& allocate,
                        const std::function<absl::Status(const Call&)>& run) {
  const Shape& shape = call.shape;
  const int64_t number = element_bytes(call.dtype);
  const int64_t key_heads = call.header[kKeyHeads] == 0 ? shape.heads : call.header[kKeyHeads];
  const auto queries = [&](int64_t width) {
    return Rows{shape.batch, number * shape.heads * width, shape.query_time, call.header[kQueryTime]};
  };
  const auto keys = [&](int64_t width) {
    return Rows{shape.batch, number * key_heads * width, shape.key_time, call.header[kKeyTime]};
  };
  const Rows sums = {shape.batch * shape.heads, sizeof(float), shape.query_time, call.header[kQueryTime]};
  Call whole = call;
  whole.shape.query_time = call.header[kQueryTime], whole.shape.key_time = call.header[kKeyTime];
  Padding padding(driver, stream, allocate);
  padding.replace(&whole.q, queries(shape.head_dim), true, false);
  padding.replace(&whole.k, keys(shape.head_dim), true, false);
  padding.replace(&whole.v, keys(shape.value_dim), true, false);
  const auto segments = [](const int32_t** numbers) { return reinterpret_cast<const void**>(numbers); };
  if (call.query_segments != nullptr) {
    const Rows query = {shape.batch, sizeof(int32_t), shape.query_time, call.header[kQueryTime]};
    const Rows key = {shape.batch, sizeof(int32_t), shape.key_time, call.header[kKeyTime]};
    padding.replace(segments(&whole.query_segments), query, true, false, kNobody);
    padding.replace(segments(&whole.key_segments), key, true, false, kNobody);
  }
  const bool forward = !call.backward;
  padding.replace(&whole.out, queries(shape.value_dim), !forward || call.onto, forward);
  padding.replace(&whole.lse, sums, !forward || call.onto, forward);
  if (call.backward) {
    padding.replace(&whole.dout, queries(shape.value_dim), true, false);
    padding.replace(&whole.dlse, sums, true, false);
    padding.replace(&whole.dq, queries(shape.head_dim), call.onto, true);
    padding.replace(&whole.dk, keys(shape.head_dim), call.onto, true);
    padding.replace(&whole.dv, keys(shape.value_dim), call.onto, true);
  }
  if (padding.status.ok()) padding.status = run(whole);
  padding.give_back();
  return padding.status;
}

}  // namespace blocksparse::gpu
