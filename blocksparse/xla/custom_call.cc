// The custom call at run time: XLA's buffers go to the CPU library's functions or the GPU library's kernels, the same
// code that the ops run, so the same bits.
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "../cpu/call.h"
#include "constants.h"
#include "xla/ffi/api/ffi.h"

extern "C" const XLA_FFI_Api* XLA_FFI_GetApi();

namespace blocksparse {
namespace {

namespace ffi = xla::ffi;

// Set by blocksparse_xla_bind; null where that library is not loaded.
CallCpu* call_cpu = nullptr;
CallGpu* call_gpu = nullptr;

struct Rows {
  int64_t batch, queries, keys;
};

// Of the first pass, without its plan. in: all operands.
Call make_call(const Constants& constants, const std::vector<void*>& in, const Rows& rows,
               const std::vector<void*>& out) {
  Call call{};
  call.backward = constants.backward;
  call.dtype = kDtypes[constants.dtype];
  call.shape = {rows.batch,      constants.heads,       constants.head_dim, constants.value_dim,
                constants.scale, int32_t(rows.queries), int32_t(rows.keys)};
  call.q = in[0], call.k = in[1], call.v = in[2];
  if (call.backward) {
    call.out = in[3], call.lse = in[4], call.dout = in[5], call.dlse = in[6];
    call.dq = out[0], call.dk = out[1], call.dv = out[2];
  } else {
    call.out = out[0], call.lse = out[1];
  }
  if (constants.segment_sides == 2) {
    call.query_segments = static_cast<const int32_t*>(in[in.size() - 2]);
    call.key_segments = static_cast<const int32_t*>(in[in.size() - 1]);
  }
  return call;
}

template <typename Run>
ffi::Error run_call(ffi::RemainingArgs arguments, ffi::RemainingRets results, ffi::Span<const int32_t> words,
                    const Run& run) {
  const auto wrong = [] { return ffi::Error(ffi::ErrorCode::kInvalidArgument, "another version's custom call"); };
  if (words.size() < kWords) return wrong();
  Constants constants;
  std::memcpy(&constants, words.begin(), sizeof(constants));
  const size_t first_plan = constants.backward ? 7 : 3;
  const size_t others = first_plan + constants.segment_sides;
  const size_t passes = arguments.size() - std::min(arguments.size(), others);
  if (passes == 0 || words.size() != kWords + passes * kPassWords) return wrong();
  std::vector<void*> in, out;
  std::vector<int64_t> rows, times;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const auto buffer = arguments.get<ffi::AnyBuffer>(i);
    if (buffer.has_error()) return buffer.error();
    in.push_back(buffer->untyped_data());
    rows.push_back(buffer->dimensions()[0]);
    times.push_back(buffer->dimensions().size() > 1 ? buffer->dimensions()[1] : 0);
  }
  for (size_t i = 0; i < results.size(); ++i) {
    auto buffer = results.get<ffi::AnyBuffer>(i);
    if (buffer.has_error()) return buffer.error();
    out.push_back((*buffer)->untyped_data());
  }
  if (rows[0] == 0) return ffi::Error::Success();
  Call call = make_call(constants, in, {rows[0], times[0], times[1]}, out);
  for (size_t pass = 0; pass < passes; ++pass) {
    PassConstants own;
    std::memcpy(&own, words.begin() + kWords + pass * kPassWords, sizeof(own));
    call.onto = pass > 0;
    call.header = own.header;
    call.orders = own.orders;
    call.plan = in[first_plan + pass];
    call.plan_size = rows[first_plan + pass];
    const std::string error = run(call);
    if (!error.empty()) return ffi::Error(ffi::ErrorCode::kInternal, error);
  }
  return ffi::Error::Success();
}

// Work that XLA's threads share. The caller works too and waits only for iterations that some thread has taken, never
// for a thread to start: all of XLA's threads may be callers of such loops, and would wait for each other for ever.
class SharedLoop : public std::enable_shared_from_this<SharedLoop> {
 public:
  using Body = std::function<void(int64_t, int64_t)>;
  SharedLoop(int64_t count, const Body& body) : count_(count), body_(body) {}

  void run(ffi::ThreadPool pool, int64_t helpers) {
    for (int64_t i = 0; i < helpers; ++i) pool.Schedule([self = shared_from_this()] { self->work(); });
    work();
    std::unique_lock<std::mutex> lock(mutex_);
    finished_.wait(lock, [this] { return done_ == count_; });
  }

 private:
  void work() {
    for (int64_t i; (i = next_.fetch_add(1)) < count_;) {  // who starts late gets no i and leaves body_ alone
      body_(i, i + 1);
      std::lock_guard<std::mutex> lock(mutex_);
      if (++done_ == count_) finished_.notify_all();
    }
  }

  const int64_t count_;
  const Body& body_;
  std::atomic<int64_t> next_{0};
  std::mutex mutex_;
  std::condition_variable finished_;
  int64_t done_ = 0;
};

ffi::Error run_cpu(ffi::ThreadPool pool, ffi::RemainingArgs arguments, ffi::RemainingRets results,
                   ffi::Span<const int32_t> constants) {
  if (call_cpu == nullptr) return ffi::Error(ffi::ErrorCode::kFailedPrecondition, "the CPU library is not loaded");
  const int threads = std::max<int>(1, pool.num_threads());
  const Parallel parallel = {threads, [&](int64_t count, const SharedLoop::Body& body) {
                               const int64_t helpers = std::min<int64_t>(threads, count) - 1;
                               std::make_shared<SharedLoop>(count, body)->run(pool, helpers);
                             }};
  std::vector<std::unique_ptr<void, decltype(&std::free)>> memory;
  const auto allocate = [&](size_t bytes) {
    memory.emplace_back(std::aligned_alloc(64, (bytes + 63) / 64 * 64), &std::free);
    return memory.back().get();
  };
  return run_call(arguments, results, constants, [&](const Call& call) { return call_cpu(call, parallel, allocate); });
}

ffi::Error run_gpu(void* stream, ffi::ScratchAllocator scratch, ffi::RemainingArgs arguments,
                   ffi::RemainingRets results, ffi::Span<const int32_t> constants) {
  if (call_gpu == nullptr) return ffi::Error(ffi::ErrorCode::kFailedPrecondition, "the GPU library is not loaded");
  // 16 bytes are what the kernels assume, and the most that XLA promises.
  const auto allocate = [&](size_t bytes) { return scratch.Allocate(bytes, 16).value_or(nullptr); };
  return run_call(arguments, results, constants, [&](const Call& call) { return call_gpu(call, stream, allocate); });
}

XLA_FFI_DEFINE_HANDLER(
    handle_cpu, run_cpu,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingArgs().RemainingRets().Attr<ffi::Span<const int32_t>>(
        "constants"));
XLA_FFI_DEFINE_HANDLER(handle_gpu, run_gpu,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::PlatformStream<void*>>()
                           .Ctx<ffi::ScratchAllocator>()
                           .RemainingArgs()
                           .RemainingRets()
                           .Attr<ffi::Span<const int32_t>>("constants"));
XLA_FFI_REGISTER_HANDLER(XLA_FFI_GetApi(), kTarget, "Host", handle_cpu);
XLA_FFI_REGISTER_HANDLER(XLA_FFI_GetApi(), kTarget, "CUDA", handle_gpu);

}  // namespace
}  // namespace blocksparse

// The addresses of blocksparse_call_cpu and blocksparse_call_gpu; null for a library that is not loaded.
extern "C" void blocksparse_xla_bind(void* cpu, void* gpu) {
  blocksparse::call_cpu = reinterpret_cast<blocksparse::CallCpu*>(cpu);
  blocksparse::call_gpu = reinterpret_cast<blocksparse::CallGpu*>(gpu);
}
