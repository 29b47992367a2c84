// Finds the compiled kernels of a key: in the read-only folders, then in the user's cache, else by running the compile
// process. A key names everything a kernel's code depends on, such as
// forward-f16-d64-v64-m64-n64-g32-o0-w0-s1-r0-c0-sm90. Kernels of 8.0 also serve the GPUs of 8.1 to 8.9.
#pragma once

#include <future>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/status/statusor.h"

namespace blocksparse::gpu {

struct CompilerSettings {
  std::vector<std::string> folders;  // where KEY/manifest may be; the last one is writable
  std::vector<std::string> shipped;  // those of them that came with the package: trusted as its own code is
  std::vector<std::string> command;  // the compile process, less the key: python compile.py --out FOLDER; or nothing
};

class Compiler {
 public:
  static Compiler& global();

  void configure(CompilerSettings settings);

  // Starts looking for `key`, compiling if need be, without waiting.
  void request(const std::string& key);

  // The folder that holds the manifest of `key`; waits for a compile process. A failure is tried again when next asked.
  absl::StatusOr<std::string> folder(const std::string& key);

 private:
  using Answer = std::shared_future<absl::StatusOr<std::string>>;
  Answer start(const std::string& key);

  std::mutex mutex_;
  CompilerSettings settings_;
  std::unordered_map<std::string, Answer> answers_;
};

}  // namespace blocksparse::gpu
