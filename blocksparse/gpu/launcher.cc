#include "blocksparse/gpu/launcher.h"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "blocksparse/gpu/compiler.h"
#include "blocksparse/gpu/driver.h"
#include "blocksparse/gpu/manifest.h"

namespace blocksparse::gpu {
namespace {

// Words of the plan's header that are passed on.
enum Header { kQueryTime = 7, kKeyTime = 8, kDistinct = 10, kByQuery = 16, kByKey = 32 };
// Where the header says each plan array starts, in the order of kPointers from head_index on.
constexpr int kArrayWords[] = {48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63, 11, 12};
constexpr int kTensorPointers = kPointerCount - std::size(kArrayWords);

using Symbols = std::array<int64_t, kSymbolCount>;

Symbols SymbolsOf(const Call& call) {
  const int32_t* header = call.header;
  Symbols symbols = {call.batch,         call.heads,       call.head_dim,    call.value_dim,
                     header[kQueryTime], header[kKeyTime], header[kDistinct]};
  std::copy_n(header + kByQuery, 8, symbols.begin() + 7);
  std::copy_n(header + kByKey, 8, symbols.begin() + 15);
  return symbols;
}

std::vector<const void*> PointersOf(const Call& call) {
  std::vector<const void*> pointers = {nullptr,  call.q,    call.k,  call.v,  call.out, call.lse,
                                       call.dout, call.dlse, call.dq, call.dk, call.dv};
  for (int word : kArrayWords) pointers.push_back(static_cast<const int32_t*>(call.plan) + call.header[word]);
  return pointers;
}

// Kernels address with 32-bit offsets inside a tensor unless one passes 2^31 elements.
bool IsWide(const Call& call) {
  const int64_t time = std::max(call.header[kQueryTime], call.header[kKeyTime]);
  return call.batch * call.heads * time * std::max(call.head_dim, call.value_dim) > INT32_MAX;
}

std::string KeyOf(const Call& call, bool backward, int capability) {
  const int32_t *q = call.header + kByQuery, *k = call.header + kByKey;
  // Rows that visit many column tiles get other tile shapes than short ones; one threshold for both passes.
  const bool long_rows = q[4] >= 6 * int64_t{q[3]};
  std::string tiles = absl::StrCat("-m", q[0], "-n", q[1], "-g", q[2]);
  if (backward) absl::StrAppend(&tiles, "-M", k[0], "-N", k[1], "-G", k[2]);
  return absl::StrCat(backward ? "backward-" : "forward-", call.dtype, "-d", call.head_dim, "-v", call.value_dim, tiles,
                      "-o", int{call.reordered}, "-w", int{IsWide(call)}) +
         absl::StrCat("-s", int{call.header[kDistinct] == 1}, "-r", int{long_rows}, "-sm", capability);
}

struct Kernels {
  Manifest manifest;
  std::vector<Handle> functions;  // one a launch of the manifest
};

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string content((std::istreambuf_iterator<char>(file)), {});
  if (!file) return absl::DataLossError(absl::StrCat("cannot read ", path));
  return content;
}

absl::StatusOr<Handle> LoadFunction(const Driver& driver, const std::string& folder, const Launch& launch) {
  absl::StatusOr<std::string> cubin = ReadFile(absl::StrCat(folder, "/", launch.file));
  if (!cubin.ok()) return cubin.status();
  Handle module, function;  // stays loaded as long as its context
  absl::Status status = driver.Check(driver.LoadModule(&module, cubin->data()),
                                     absl::StrCat("loading ", folder, "/", launch.file));
  if (!status.ok()) return status;
  status = driver.Check(driver.ModuleFunction(&function, module, launch.function.c_str()), launch.function);
  if (!status.ok()) return status;
  status = driver.Check(driver.FunctionAttribute(function, kDynamicSharedLimit, launch.shared),
                        absl::StrCat(launch.shared, " bytes of shared memory for ", launch.name));
  if (!status.ok()) return status;
  return function;
}

absl::StatusOr<std::shared_ptr<const Kernels>> LoadKernels(const Driver& driver, const std::string& key) {
  absl::StatusOr<std::string> folder = Compiler::Global().Folder(key);
  if (!folder.ok()) return folder.status();
  absl::StatusOr<std::string> text = ReadFile(*folder + "/manifest");
  if (!text.ok()) return text.status();
  auto kernels = std::make_shared<Kernels>();
  absl::Status status = ManifestParser::Parse(*text, &kernels->manifest);
  if (status.ok() && kernels->manifest.key != key) {
    status = absl::InvalidArgumentError(absl::StrCat("it is for ", kernels->manifest.key));
  }
  if (!status.ok()) return absl::DataLossError(absl::StrCat(*folder, "/manifest: ", status.message()));
  for (const Launch& launch : kernels->manifest.launches) {
    absl::StatusOr<Handle> function = LoadFunction(driver, *folder, launch);
    if (!function.ok()) return function.status();
    kernels->functions.push_back(*function);
  }
  return kernels;
}

class KernelCache {
 public:
  static KernelCache& Global() {
    static auto* cache = new KernelCache;  // never destroyed: the driver may be gone when static objects go
    return *cache;
  }

  absl::StatusOr<int> Capability(const Driver& driver, Handle context) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto [entry, fresh] = capabilities_.try_emplace(context, 0);
    if (fresh) {
      int device, major, minor;
      absl::Status status = driver.Check(driver.ContextDevice(&device), "cuCtxGetDevice");
      status.Update(driver.Check(driver.DeviceAttribute(&major, kCapabilityMajor, device), "cuDeviceGetAttribute"));
      status.Update(driver.Check(driver.DeviceAttribute(&minor, kCapabilityMinor, device), "cuDeviceGetAttribute"));
      if (!status.ok()) {
        capabilities_.erase(entry);
        return status;
      }
      entry->second = major * 10 + minor;
    }
    return entry->second;
  }

  // A key compiles while the lock is not held, so that other threads go on; the compiler joins equal requests.
  absl::StatusOr<std::shared_ptr<const Kernels>> Get(const Driver& driver, Handle context, const std::string& key,
                                                     const std::string& soon) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      auto found = kernels_.find({context, key});
      if (found != kernels_.end()) return found->second;
    }
    if (!soon.empty()) Compiler::Global().Request(soon);
    absl::StatusOr<std::shared_ptr<const Kernels>> kernels = LoadKernels(driver, key);
    if (!kernels.ok()) return kernels.status();
    std::lock_guard<std::mutex> lock(mutex_);
    return kernels_.try_emplace({context, key}, *kernels).first->second;
  }

 private:
  std::mutex mutex_;
  std::map<Handle, int> capabilities_;
  std::map<std::pair<Handle, std::string>, std::shared_ptr<const Kernels>> kernels_;
};

absl::Status LaunchOne(const Driver& driver, const Launch& launch, Handle function, const Symbols& symbols,
                       const std::vector<const void*>& pointers, float scale, Handle stream) {
  union Slot {
    const void* pointer;
    int32_t int32;
    int64_t int64;
    float real;
  };
  const size_t count = launch.arguments.size();
  std::vector<Slot> slots(count + 2, Slot{nullptr});  // Triton's kernels end in two scratch pointers, unused here
  std::vector<void*> parameters;
  for (size_t i = 0; i < slots.size(); ++i) {
    parameters.push_back(&slots[i]);
    if (i >= count) continue;
    const Argument& argument = launch.arguments[i];
    switch (argument.kind) {
      case Argument::kPointer: slots[i].pointer = pointers[argument.pointer]; break;
      case Argument::kInt32: slots[i].int32 = static_cast<int32_t>(argument.value.Value(symbols.data())); break;
      case Argument::kInt64: slots[i].int64 = argument.value.Value(symbols.data()); break;
      case Argument::kScale: slots[i].real = scale; break;
      case Argument::kScaleLog2: slots[i].real = scale * 1.44269504088896340736f; break;
    }
  }
  int64_t grid[3];
  for (int i = 0; i < 3; ++i) grid[i] = launch.grid[i].Value(symbols.data());
  if (grid[0] == 0 || grid[1] == 0 || grid[2] == 0) return absl::OkStatus();
  return driver.Check(
      driver.Launch(function, grid[0], grid[1], grid[2], launch.warps * 32, 1, 1, launch.shared, stream,
                    parameters.data(), nullptr),
      absl::StrCat("launching ", launch.name, " on a grid of ", grid[0], " x ", grid[1], " x ", grid[2]));
}

absl::Status RunInContext(const Driver& driver, const Call& call, int capability, Handle context, void* stream,
                          Allocate allocate) {
  // Training needs the backward kernels next: they compile beside the forward ones.
  const std::string soon = call.backward ? "" : KeyOf(call, true, capability);
  auto kernels = KernelCache::Global().Get(driver, context, KeyOf(call, call.backward, capability), soon);
  if (!kernels.ok()) return kernels.status();
  const Manifest& manifest = (*kernels)->manifest;
  const Symbols symbols = SymbolsOf(call);
  std::vector<const void*> pointers = PointersOf(call);
  for (const auto& [name, size] : manifest.temps) {
    const int64_t bytes = size.Value(symbols.data());
    pointers.push_back(allocate(bytes));
    if (pointers.back() == nullptr && bytes > 0) {
      return absl::ResourceExhaustedError(absl::StrCat("no memory for ", bytes, " bytes of ", name));
    }
  }
  for (size_t i = 0; i < manifest.launches.size(); ++i) {
    absl::Status status = LaunchOne(driver, manifest.launches[i], (*kernels)->functions[i], symbols, pointers,
                                    call.scale, stream);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

std::string Describe(const Call& call, int capability) {
  return absl::StrCat("block-sparse attention ", call.backward ? "backward" : "forward", " (", call.dtype, ", batch ",
                      call.batch, ", heads ", call.heads, ", time ", call.header[kQueryTime], " x ",
                      call.header[kKeyTime]) +
         absl::StrCat(", head_dim ", call.head_dim, ", value_dim ", call.value_dim, ", sm_", capability, "): ");
}

}  // namespace

absl::Status Run(const Call& call, void* stream, Allocate allocate) {
  absl::StatusOr<const Driver*> driver = GetDriver();
  if (!driver.ok()) return driver.status();
  ContextScope scope(**driver, stream);
  if (!scope.status().ok()) return scope.status();
  absl::StatusOr<int> capability = KernelCache::Global().Capability(**driver, scope.context());
  if (!capability.ok()) return capability.status();
  absl::Status status = RunInContext(**driver, call, *capability, scope.context(), stream, allocate);
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat(Describe(call, *capability), status.message()));
}

}  // namespace blocksparse::gpu
