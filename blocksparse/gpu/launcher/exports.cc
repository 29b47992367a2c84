// What Python calls through ctypes.
#include <algorithm>
#include <string>

#include "../../cpu/plan_words.h"
#include "absl/strings/str_split.h"
#include "compiler.h"
#include "launcher.h"
#include "manifest.h"

namespace blocksparse::gpu {
namespace {

std::vector<std::string> lines(const char* text) { return absl::StrSplit(text, '\n', absl::SkipEmpty()); }

std::string describe(const char* text, const int64_t* symbols) {
  Manifest manifest;
  absl::Status status = ManifestParser::parse(text, &manifest);
  if (!status.ok()) return absl::StrCat("error: ", status.message());
  std::string lines = absl::StrCat(manifest.key, "\n");
  for (const auto& [name, file] : manifest.files) {
    absl::StrAppend(&lines, name, " ", file.bytes, " ", file.digest, "\n");
  }
  for (const auto& [name, size] : manifest.temps) {
    int64_t bytes;
    status.Update(evaluate(size, symbols, 0, kMostTempBytes, name, &bytes));
    absl::StrAppend(&lines, name, " ", bytes, "\n");
  }
  for (const Launch& launch : manifest.launches) {
    absl::StrAppend(&lines, launch.name, " ", launch.warps, " ", launch.shared);
    int64_t grid[3];
    status.Update(launch.size(symbols, grid));
    for (int64_t side : grid) absl::StrAppend(&lines, " ", side);
    for (const Argument& argument : launch.arguments) {
      int64_t number = argument.pointer;
      const bool integer = argument.kind == Argument::kInt32 || argument.kind == Argument::kInt64;
      if (integer) status.Update(argument.number(symbols, &number));
      absl::StrAppend(&lines, " ", number);
    }
    absl::StrAppend(&lines, "\n");
  }
  return status.ok() ? lines : absl::StrCat("error: ", status.message());
}

void write(const std::string& text, char* out, int size) { out[text.copy(out, std::max(0, size - 1))] = '\0'; }

}  // namespace
}  // namespace blocksparse::gpu

// Newline-separated lists: the folders that may hold a key, those of them that came with the package, and the words of
// the compile process (none: no Triton).
extern "C" void blocksparse_gpu_configure(const char* folders, const char* shipped, const char* command) {
  using namespace blocksparse::gpu;
  Compiler::global().configure({lines(folders), lines(shipped), lines(command)});
}

// Parses a manifest without a GPU and writes what the launcher would run with these symbols (kSymbols); for tests.
extern "C" void blocksparse_gpu_describe(const char* manifest, const int64_t* symbols, char* out, int size) {
  blocksparse::gpu::write(blocksparse::gpu::describe(manifest, symbols), out, size);
}

// The folder of a key's kernels, compiled if need be, or "error: ..."; for tests and for compiling ahead.
extern "C" void blocksparse_gpu_folder(const char* key, char* out, int size) {
  using namespace blocksparse::gpu;
  const absl::StatusOr<std::string> folder = Compiler::global().folder(key);
  write(folder.ok() ? *folder : absl::StrCat("error: ", folder.status().message()), out, size);
}

// The key of a call on a plan in host memory, on tensors of which `missing` queries are not there; for the test that
// compares it with key.py's.
extern "C" void blocksparse_gpu_key(const int32_t* plan, int orders, int onto, int segments, int missing, int backward,
                                    const char* dtype, int64_t batch, int head_dim, int value_dim, int capability,
                                    char* out, int size) {
  using namespace blocksparse::gpu;
  blocksparse::Call call{backward != 0,
                         dtype,
                         {batch, plan[blocksparse::kHeads], head_dim, value_dim, 1,
                          plan[blocksparse::kQueryTime] - missing, plan[blocksparse::kKeyTime]}};
  call.header = plan, call.orders = orders, call.onto = onto != 0;
  call.query_segments = segments != 0 ? plan : nullptr;
  write(key_of(call, call.backward, capability), out, size);
}
