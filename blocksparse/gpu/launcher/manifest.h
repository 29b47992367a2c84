// The launches of one pass (forward or backward) as compile.py wrote them: plain text, read without TensorFlow.
//
//   blocksparse-manifest 2 KEY
//   file NAME BYTES DIGEST                              what the launches load; BLAKE2b of 16 bytes, in hexadecimal
//   temp NAME BYTES                                     device scratch, uninitialised
//   launch NAME FILE FUNCTION WARPS SHARED X Y Z ARG...  in the order to run
//
// A temp's BYTES and X, Y, Z are expressions over kSymbols. ARG is p:POINTER, i:EXPR (int32), l:EXPR (int64), f:scale
// or f:scale_log2 (scale * log2 e, float).
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_split.h"
#include "expression.h"

namespace blocksparse::gpu {

// query_time and key_time are the tensors', query_rows and key_rows the plan's, which may be more. q.* are of the
// plan's by_query record, k.* of by_key; multiprocessors: the GPU's. Both lists are known to manifest.py under these
// names.
constexpr absl::string_view kSymbols[] = {
    "batch",
    "heads",
    "head_dim",
    "value_dim",
    "query_time",
    "key_time",
    "distinct",
    "q.M",
    "q.N",
    "q.g",
    "q.tiles",
    "q.column_tiles",
    "q.distinct_masks",
    "q.most_tiles",
    "q.most_columns",
    "k.M",
    "k.N",
    "k.g",
    "k.tiles",
    "k.column_tiles",
    "k.distinct_masks",
    "k.most_tiles",
    "k.most_columns",
    "kv_heads",
    "multiprocessors",
    "query_rows",
    "key_rows",
};
constexpr absl::string_view kPointers[] = {
    "null",         "q",           "k",        "v",
    "out",          "lse",         "dout",     "dlse",
    "dq",           "dk",          "dv",       "query_segments",
    "key_segments", "head_index",  "residues", "q.head_tiles",
    "q.rows",       "q.row_count", "q.offset", "q.full",
    "q.columns",    "q.mask",      "q.masks",  "k.head_tiles",
    "k.rows",       "k.row_count", "k.offset", "k.full",
    "k.columns",    "k.mask",      "k.masks",  "key_index",
    "key_residues", "norm",        "weight",   "bias",
    "cache",        "members",     "words",    "begins",
    "places",       "ends",        "integers", "reals",
    "table",        "streams",     "tokens",
};
constexpr int kSymbolCount = std::size(kSymbols);
constexpr int kQuerySymbols = 7, kKeySymbols = 15;  // where q.*, k.* begin: a plan's side, word for word
constexpr int kPointerCount = std::size(kPointers);

// The value of an expression that has to lie in least .. most, for `what`.
inline absl::Status evaluate(const Expression& expression, const int64_t* symbols, int64_t least, int64_t most,
                             absl::string_view what, int64_t* out) {
  if (!expression.value(symbols, out)) {
    return absl::OutOfRangeError(absl::StrCat(what, " leaves 64 bits"));
  }
  if (*out >= least && *out <= most) return absl::OkStatus();
  return absl::OutOfRangeError(absl::StrCat(what, " is ", *out, "; it has to be ", least, " to ", most));
}

struct Argument {
  enum Kind { kPointer, kInt32, kInt64, kScale, kScaleLog2 } kind;
  int pointer = 0;  // into kPointers, then the temps
  Expression value;

  // The number that an int32 or int64 argument has.
  absl::Status number(const int64_t* symbols, int64_t* out) const {
    const bool narrow = kind == kInt32;
    return evaluate(value, symbols, narrow ? INT32_MIN : INT64_MIN, narrow ? INT32_MAX : INT64_MAX, "an argument", out);
  }
};

struct File {
  int64_t bytes;
  std::string digest;
};

struct Launch {
  std::string name, file, function;
  int warps = 0, shared = 0;  // shared: bytes of dynamic shared memory
  std::array<Expression, 3> grid;
  std::vector<Argument> arguments;

  absl::Status size(const int64_t* symbols, int64_t (&out)[3]) const {
    absl::Status status;
    for (int i = 0; i < 3; ++i) {
      status.Update(evaluate(grid[i], symbols, 0, i == 0 ? INT32_MAX : 65535, "a grid's side", &out[i]));
    }
    return status;
  }
};

struct Manifest {
  std::string key;
  std::map<std::string, File> files;
  std::vector<std::pair<std::string, Expression>> temps;
  std::vector<Launch> launches;
};

// A manifest's limits. What compile.py writes stays far below them.
constexpr int64_t kMostManifestBytes = 1 << 20, kMostFileBytes = 64 << 20, kMostTempBytes = int64_t{1} << 40;
constexpr int kMostLaunches = 16, kMostArguments = 256, kMostWarps = 32, kMostSharedBytes = 1 << 20;

class ManifestParser {
 public:
  static absl::Status parse(absl::string_view text, Manifest* out) {
    ManifestParser parser{out};
    int number = 0;
    if (text.size() > kMostManifestBytes) return absl::InvalidArgumentError("a manifest of more than 1 MB");
    for (absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
      ++number;
      absl::Status status = parser.line(absl::StrSplit(line, ' '), number == 1);
      if (!status.ok()) {
        return absl::InvalidArgumentError(absl::StrCat("manifest line ", number, ": ", status.message()));
      }
    }
    return out->key.empty() ? absl::InvalidArgumentError("empty manifest") : absl::OkStatus();
  }

 private:
  explicit ManifestParser(Manifest* out) : out_(*out) { *out = Manifest(); }

  absl::Status line(const std::vector<absl::string_view>& words, bool first) {
    if (first) {
      if (words.size() != 3 || words[0] != "blocksparse-manifest" || words[1] != "2") {
        return absl::InvalidArgumentError("not a manifest of version 2");
      }
      out_.key = std::string(words[2]);
      return absl::OkStatus();
    }
    if (words[0] == "file" && words.size() == 4) return parse_file(words);
    if (words[0] == "temp" && words.size() == 3 && out_.temps.size() < kMostLaunches) {
      out_.temps.emplace_back(words[1], Expression());
      return Expression::parse(words[2], symbol_index, &out_.temps.back().second);
    }
    const bool launch = words[0] == "launch" && words.size() >= 9 && words.size() <= 9 + kMostArguments;
    if (launch && out_.launches.size() < kMostLaunches) return parse_launch(words);
    return absl::InvalidArgumentError(absl::StrCat("cannot read '", words[0], "' of ", words.size(), " words"));
  }

  absl::Status parse_file(const std::vector<absl::string_view>& words) {
    File file{0, std::string(words[3])};
    if (!absl::SimpleAtoi(words[2], &file.bytes) || file.bytes < 1 || file.bytes > kMostFileBytes) {
      return absl::InvalidArgumentError(absl::StrCat("a file of ", words[2], " bytes; 1 to 64 MB can be"));
    }
    if (words[1].find('/') != absl::string_view::npos) {
      return absl::InvalidArgumentError(absl::StrCat("file ", words[1], " is not beside the manifest"));
    }
    out_.files.emplace(words[1], file);
    return absl::OkStatus();
  }

  absl::Status parse_launch(const std::vector<absl::string_view>& words) {
    Launch launch;
    launch.name = std::string(words[1]), launch.file = std::string(words[2]), launch.function = std::string(words[3]);
    if (!absl::SimpleAtoi(words[4], &launch.warps) || !absl::SimpleAtoi(words[5], &launch.shared)) {
      return absl::InvalidArgumentError("warps and shared memory must be numbers");
    }
    if (launch.warps < 1 || launch.warps > kMostWarps || launch.shared < 0 || launch.shared > kMostSharedBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat(launch.warps, " warps and ", launch.shared, " bytes of shared memory; no GPU has so many"));
    }
    if (out_.files.count(launch.file) == 0) {
      return absl::InvalidArgumentError(absl::StrCat("no line before tells of file ", launch.file));
    }
    absl::Status status;
    for (int i = 0; i < 3; ++i) status.Update(Expression::parse(words[6 + i], symbol_index, &launch.grid[i]));
    for (size_t i = 9; i < words.size(); ++i) {
      launch.arguments.emplace_back();
      status.Update(parse_argument(words[i], &launch.arguments.back()));
    }
    out_.launches.push_back(std::move(launch));
    return status;
  }

  absl::Status parse_argument(absl::string_view word, Argument* out) {
    const absl::string_view kind = word.substr(0, 2), rest = word.size() > 2 ? word.substr(2) : "";
    if (kind == "p:") {
      out->kind = Argument::kPointer;
      out->pointer = pointer_index(rest);
      if (out->pointer >= 0) return absl::OkStatus();
    } else if (kind == "i:" || kind == "l:") {
      out->kind = kind == "i:" ? Argument::kInt32 : Argument::kInt64;
      return Expression::parse(rest, symbol_index, &out->value);
    } else if (word == "f:scale" || word == "f:scale_log2") {
      out->kind = word == "f:scale" ? Argument::kScale : Argument::kScaleLog2;
      return absl::OkStatus();
    }
    return absl::InvalidArgumentError(absl::StrCat("unknown argument ", word));
  }

  static int symbol_index(absl::string_view name) { return index_of(kSymbols, name); }

  int pointer_index(absl::string_view name) const {
    for (size_t i = 0; i < out_.temps.size(); ++i) {
      if (out_.temps[i].first == name) return kPointerCount + static_cast<int>(i);
    }
    return index_of(kPointers, name);
  }

  template <int n>
  static int index_of(const absl::string_view (&names)[n], absl::string_view name) {
    for (int i = 0; i < n; ++i) {
      if (names[i] == name) return i;
    }
    return -1;
  }

  Manifest& out_;
};

}  // namespace blocksparse::gpu
