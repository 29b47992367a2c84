#include "kernel_cache.h"

#include <cstdlib>
#include <fstream>

#include "../../cpu/blake2b.h"
#include "absl/strings/escaping.h"
#include "compiler.h"

namespace blocksparse::gpu {
namespace {

// BLOCKSPARSE_CAPABILITY=70 or 75 lets a newer GPU run an older one's kernels, which are compiled to PTX then.
int capability_of(int major, int minor) {
  const int own = major * 10 + minor;
  const char* wanted = std::getenv("BLOCKSPARSE_CAPABILITY");
  return wanted == nullptr || *wanted == 0 ? own : std::min(own, std::atoi(wanted));
}

// The first `most` bytes of a file.
absl::StatusOr<std::string> read_file(const std::string& path, int64_t most) {
  std::ifstream file(path, std::ios::binary);
  std::string content(most, 0);
  file.read(&content[0], most);
  if (!file.is_open() || file.bad()) return absl::DataLossError(absl::StrCat("cannot read ", path));
  content.resize(file.gcount());
  return content;
}

// A cubin that is the one its manifest was written for: the driver may crash on half of one.
absl::StatusOr<std::string> read_cubin(const std::string& path, const File& wanted) {
  absl::StatusOr<std::string> cubin = read_file(path, wanted.bytes + 1);
  if (!cubin.ok()) return cubin;
  const Blake2b::Digest digest = Blake2b::of(cubin->data(), cubin->size());
  const absl::string_view bytes(reinterpret_cast<const char*>(digest.data()), digest.size());
  if (static_cast<int64_t>(cubin->size()) == wanted.bytes && absl::BytesToHexString(bytes) == wanted.digest) {
    return cubin;
  }
  return absl::DataLossError(absl::StrCat(path,
                                          " is damaged: it is not the file that its manifest tells of; "
                                          "remove its folder, and it is compiled again"));
}

absl::StatusOr<Handle> load_function(const Driver& driver, const std::string& folder, const Manifest& manifest,
                                     const Launch& launch) {
  absl::StatusOr<std::string> cubin =
      read_cubin(absl::StrCat(folder, "/", launch.file), manifest.files.at(launch.file));
  if (!cubin.ok()) return cubin.status();
  Handle module, function;  // stays loaded as long as its context
  absl::Status status =
      driver.check(driver.load_module(&module, cubin->data()), absl::StrCat("loading ", folder, "/", launch.file));
  if (!status.ok()) return status;
  status = driver.check(driver.module_function(&function, module, launch.function.c_str()), launch.function);
  if (!status.ok()) return status;
  status = driver.check(driver.function_attribute(function, kDynamicSharedLimit, launch.shared),
                        absl::StrCat(launch.shared, " bytes of shared memory for ", launch.name,
                                     " (a graph made on a machine with another GPU can have larger tiles)"));
  if (!status.ok()) return status;
  return function;
}

absl::StatusOr<std::shared_ptr<const Kernels>> load_kernels(const Driver& driver, const std::string& key) {
  absl::StatusOr<std::string> folder = Compiler::global().folder(key);
  if (!folder.ok()) return folder.status();
  absl::StatusOr<std::string> text = read_file(*folder + "/manifest", kMostManifestBytes + 1);
  if (!text.ok()) return text.status();
  auto kernels = std::make_shared<Kernels>();
  absl::Status status = ManifestParser::parse(*text, &kernels->manifest);
  const size_t name = folder->rfind('/') + 1;  // the key, or that of kernels that serve this GPU too
  if (status.ok() && kernels->manifest.key != folder->substr(name)) {
    status = absl::InvalidArgumentError(absl::StrCat("it is for ", kernels->manifest.key));
  }
  if (!status.ok()) return absl::DataLossError(absl::StrCat(*folder, "/manifest: ", status.message()));
  for (const Launch& launch : kernels->manifest.launches) {
    absl::StatusOr<Handle> function = load_function(driver, *folder, kernels->manifest, launch);
    if (!function.ok()) return function.status();
    kernels->functions.push_back(*function);
  }
  return kernels;
}

}  // namespace

KernelCache& KernelCache::global() {
  static auto* cache = new KernelCache;  // never destroyed: the driver may be gone when static objects go
  return *cache;
}

absl::StatusOr<Device> KernelCache::device(const Driver& driver, Handle context) {
  std::lock_guard<std::mutex> lock(mutex_);
  auto [entry, fresh] = devices_.try_emplace(context);
  if (fresh) {
    int device, major, minor, multiprocessors;
    absl::Status status = driver.check(driver.context_device(&device), "cuCtxGetDevice");
    status.Update(driver.check(driver.device_attribute(&major, kCapabilityMajor, device), "cuDeviceGetAttribute"));
    status.Update(driver.check(driver.device_attribute(&minor, kCapabilityMinor, device), "cuDeviceGetAttribute"));
    status.Update(
        driver.check(driver.device_attribute(&multiprocessors, kMultiprocessors, device), "cuDeviceGetAttribute"));
    if (!status.ok()) {
      devices_.erase(entry);
      return status;
    }
    entry->second = {capability_of(major, minor), multiprocessors};
  }
  return entry->second;
}

absl::StatusOr<std::shared_ptr<const Kernels>> KernelCache::get(const Driver& driver, Handle context,
                                                                const std::string& key, const std::string& soon) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    auto found = kernels_.find({context, key});
    if (found != kernels_.end()) return found->second;
  }
  if (!soon.empty()) Compiler::global().request(soon);
  absl::StatusOr<std::shared_ptr<const Kernels>> kernels = load_kernels(driver, key);
  if (!kernels.ok()) return kernels.status();
  std::lock_guard<std::mutex> lock(mutex_);
  return kernels_.try_emplace({context, key}, *kernels).first->second;
}

}  // namespace blocksparse::gpu
