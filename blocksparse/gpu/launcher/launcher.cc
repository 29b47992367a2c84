#include "launcher.h"

#include <algorithm>
#include <functional>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "../../cpu/plan_words.h"
#include "absl/strings/str_cat.h"
#include "driver.h"
#include "kernel_cache.h"
#include "manifest.h"
#include "padding.h"

namespace blocksparse::gpu {
namespace {

using Symbols = std::array<int64_t, kSymbolCount>;

constexpr int kTriton = 80;  // TRITON of gpu/cuda/__init__.py: the least compute capability that Triton serves

int32_t key_heads_of(const int32_t* header) { return header[header[kKeyHeads] == 0 ? kHeads : kKeyHeads]; }

Symbols symbols_of(const Call& call, const Device& device) {
  const int32_t* header = call.header;
  Symbols symbols = {call.shape.batch,      call.shape.heads,    call.shape.head_dim, call.shape.value_dim,
                     call.shape.query_time, call.shape.key_time, header[kDistinct]};
  std::copy_n(header + kByQuery, side::kCount, symbols.begin() + kQuerySymbols);
  std::copy_n(header + kByKey, side::kCount, symbols.begin() + kKeySymbols);
  symbols[kSymbolCount - 4] = key_heads_of(header);
  symbols[kSymbolCount - 3] = device.multiprocessors;
  symbols[kSymbolCount - 2] = header[kQueryTime];
  symbols[kSymbolCount - 1] = header[kKeyTime];
  return symbols;
}

std::vector<const void*> pointers_of(const Call& call) {
  std::vector<const void*> pointers = {nullptr,   call.q,    call.k,  call.v,  call.out, call.lse,
                                       call.dout, call.dlse, call.dq, call.dk, call.dv};
  pointers.insert(pointers.end(), {call.query_segments, call.key_segments});
  const auto add = [&](int word) { pointers.push_back(static_cast<const int32_t*>(call.plan) + call.header[word]); };
  for (int word : {kHeadIndex, kResidues}) add(word);
  for (int word : kQueryStarts) add(word);
  for (int word : kKeyStarts) add(word);
  for (int word : {kKeyIndex, kKeyResidues}) add(word);  // of a plan with fewer key heads than heads, else never read
  pointers.resize(kPointerCount);                        // a pass has none of a step's
  return pointers;
}

// Kernels address with 32-bit offsets inside a tensor unless one passes 2^31 elements.
bool is_wide(const Call& call) {
  const int64_t time = std::max(call.header[kQueryTime], call.header[kKeyTime]);
  const int64_t width = int64_t{call.shape.heads} * std::max(call.shape.head_dim, call.shape.value_dim);
  return call.shape.batch * time * width > INT32_MAX;
}

}  // namespace

std::string key_of(const Call& call, bool backward, int capability) {
  const int32_t *q = call.header + kByQuery, *k = call.header + kByKey;
  // LONG of gpu/key.py: long rows have launches of their own in the tuned tables; one threshold for both passes.
  const bool long_rows = q[4] >= 20 * int64_t{q[3]};
  std::string tiles = absl::StrCat("-m", q[0], "-n", q[1], "-g", q[2]);
  if (backward) absl::StrAppend(&tiles, "-M", k[0], "-N", k[1], "-G", k[2]);
  const Shape& shape = call.shape;
  const int32_t group = shape.heads / key_heads_of(call.header);
  const char* segments = call.query_segments == nullptr ? "" : call.orders == 2 ? "-i2" : "-i1";
  return absl::StrCat(backward ? "backward-" : "forward-", call.dtype, "-d", shape.head_dim, "-v", shape.value_dim,
                      tiles, "-o", int{call.orders != 0}, "-w", int{is_wide(call)}) +
         absl::StrCat("-s", int{call.header[kDistinct] == 1}, "-r", int{long_rows}, "-c", call.header[kClosed],
                      call.onto ? "-j1" : "", group > 1 ? absl::StrCat("-k", group) : "", segments,
                      fills_plan(call) ? "" : "-b1", "-sm", capability);
}

namespace {

absl::Status launch_one(const Driver& driver, const Launch& launch, Handle function, const Symbols& symbols,
                        const std::vector<const void*>& pointers, float scale, Handle stream) {
  union Slot {
    const void* pointer;
    int64_t int64;
    float real;
  };
  const size_t count = launch.arguments.size();
  std::vector<Slot> slots(count + 2, Slot{nullptr});  // Triton's kernels end in two scratch pointers, unused here
  std::vector<void*> parameters;
  absl::Status status;
  for (size_t i = 0; i < slots.size(); ++i) {
    parameters.push_back(&slots[i]);
    if (i >= count) continue;
    const Argument& argument = launch.arguments[i];
    switch (argument.kind) {
      case Argument::kPointer:
        slots[i].pointer = pointers[argument.pointer];
        break;
      case Argument::kInt32:  // the lower half of the slot: GPUs have only little-endian hosts
      case Argument::kInt64:
        status.Update(argument.number(symbols.data(), &slots[i].int64));
        break;
      case Argument::kScale:
        slots[i].real = scale;
        break;
      case Argument::kScaleLog2:
        slots[i].real = scale * 1.44269504088896340736f;
        break;
    }
  }
  int64_t grid[3];
  status.Update(launch.size(symbols.data(), grid));
  if (!status.ok()) return status;
  if (grid[0] == 0 || grid[1] == 0 || grid[2] == 0) return absl::OkStatus();
  return driver.check(
      driver.launch(function, grid[0], grid[1], grid[2], launch.warps * 32, 1, 1, launch.shared, stream,
                    parameters.data(), nullptr),
      absl::StrCat("launching ", launch.name, " on a grid of ", grid[0], " x ", grid[1], " x ", grid[2]));
}

absl::Status run_in_context(const Driver& driver, const Call& call, const Device& device, Handle context, void* stream,
                            const Allocate& allocate) {
  // Training needs the backward kernels next: they compile beside the forward ones.
  const std::string soon = call.backward ? "" : key_of(call, true, device.capability);
  auto kernels = KernelCache::global().get(driver, context, key_of(call, call.backward, device.capability), soon);
  if (!kernels.ok()) return kernels.status();
  const Manifest& manifest = (*kernels)->manifest;
  const Symbols symbols = symbols_of(call, device);
  std::vector<const void*> pointers = pointers_of(call);
  for (const auto& [name, size] : manifest.temps) {
    int64_t bytes;
    absl::Status status = evaluate(size, symbols.data(), 0, kMostTempBytes, name, &bytes);
    if (!status.ok()) return status;
    pointers.push_back(allocate(bytes));
    if (pointers.back() == nullptr && bytes > 0) {
      return absl::ResourceExhaustedError(absl::StrCat("no memory for ", bytes, " bytes of ", name));
    }
  }
  for (size_t i = 0; i < manifest.launches.size(); ++i) {
    absl::Status status =
        launch_one(driver, manifest.launches[i], (*kernels)->functions[i], symbols, pointers, call.shape.scale, stream);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

// Keys that no kernels were found for, so that a process of the compiler is not started at every call.
class Lacking {
 public:
  bool has(const std::string& key) {
    std::lock_guard<std::mutex> lock(mutex_);
    return keys_.count(key) > 0;
  }
  void add(const std::string& key) {
    std::lock_guard<std::mutex> lock(mutex_);
    keys_.insert(key);
  }

 private:
  std::mutex mutex_;
  std::set<std::string> keys_;
};

// A call on tensors shorter than their plan. Triton's kernels have keys of their own for it (-b1) and end where the
// tensors do. Those in CUDA C++ (below 8.0) read and write every row of the plan: they get copies that fill it. So do
// the others where such a key is not there and no Triton to compile it: wheels bring keys of whole plans alone.
absl::Status run_shorter(const Driver& driver, const Call& call, const Device& device, Handle stream,
                         const Allocate& allocate, const std::function<absl::Status(const Call&)>& run) {
  static auto* lacking = new Lacking;  // never destroyed, as the caches of kernels
  const std::string key = key_of(call, call.backward, device.capability);
  if (device.capability >= kTriton && !lacking->has(key)) {
    const absl::Status status = run(call);
    if (!absl::IsNotFound(status)) return status;
    lacking->add(key);
  }
  return run_padded(driver, call, stream, allocate, run);
}

std::string describe(const Call& call, int capability) {
  const Shape& shape = call.shape;
  return absl::StrCat("block-sparse attention ", call.backward ? "backward" : "forward", " (", call.dtype, ", batch ",
                      shape.batch, ", heads ", shape.heads, ", time ", call.header[kQueryTime], " x ",
                      call.header[kKeyTime]) +
         absl::StrCat(", head_dim ", shape.head_dim, ", value_dim ", shape.value_dim, ", sm_", capability, "): ");
}

}  // namespace

absl::Status run(const Call& call, void* stream, const Allocate& allocate) {
  if (call.shape.query_time == 0 && call.shape.key_time == 0) return absl::OkStatus();  // all results are empty
  for (int32_t width : {call.shape.head_dim, call.shape.value_dim}) {
    if (width % 8 == 0 && width <= 256) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("a head is ", width, " wide; on a GPU it has to be a multiple of 8, up to 256"));
  }
  absl::StatusOr<const Driver*> driver = get_driver();
  if (!driver.ok()) return driver.status();
  ContextScope scope(**driver, stream);
  if (!scope.status().ok()) return scope.status();
  absl::StatusOr<Device> device = KernelCache::global().device(**driver, scope.context());
  if (!device.ok()) return device.status();
  const auto run_one = [&](const Call& one) {
    return run_in_context(**driver, one, *device, scope.context(), stream, allocate);
  };
  const absl::Status status =
      fills_plan(call) ? run_one(call) : run_shorter(**driver, call, *device, stream, allocate, run_one);
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat(describe(call, device->capability), status.message()));
}

}  // namespace blocksparse::gpu

extern "C" std::string blocksparse_call_gpu(const blocksparse::Call& call, void* stream,
                                            const blocksparse::Allocate& allocate) {
  return std::string(blocksparse::gpu::run(call, stream, allocate).message());
}
