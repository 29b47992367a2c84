// The launches of one pass (forward or backward) as compile.py wrote them: plain text, read without TensorFlow.
//
//   blocksparse-manifest 1 KEY
//   temp NAME BYTES                                     device scratch, uninitialised
//   launch NAME FILE FUNCTION WARPS SHARED X Y Z ARG...  in the order to run
//
// BYTES, X, Y, Z are expressions over kSymbols. ARG is p:POINTER, i:EXPR (int32), l:EXPR (int64), f:scale or
// f:scale_log2 (scale * log2 e, float).
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_split.h"
#include "expression.h"

namespace blocksparse::gpu {

// q.* are of the plan's by_query record, k.* of by_key; multiprocessors: the GPU's. Both lists are known to manifest.py
// under these names.
constexpr absl::string_view kSymbols[] = {
    "batch", "heads", "head_dim", "value_dim", "query_time", "key_time", "distinct",
    "q.M", "q.N", "q.g", "q.tiles", "q.column_tiles", "q.distinct_masks", "q.most_tiles", "q.most_columns",
    "k.M", "k.N", "k.g", "k.tiles", "k.column_tiles", "k.distinct_masks", "k.most_tiles", "k.most_columns",
    "multiprocessors",
};
constexpr absl::string_view kPointers[] = {
    "null", "q", "k", "v", "out", "lse", "dout", "dlse", "dq", "dk", "dv", "head_index", "order",
    "q.head_tiles", "q.rows", "q.row_count", "q.offset", "q.full", "q.columns", "q.mask", "q.masks",
    "k.head_tiles", "k.rows", "k.row_count", "k.offset", "k.full", "k.columns", "k.mask", "k.masks",
};
constexpr int kSymbolCount = std::size(kSymbols);
constexpr int kPointerCount = std::size(kPointers);

struct Argument {
  enum Kind { kPointer, kInt32, kInt64, kScale, kScaleLog2 } kind;
  int pointer = 0;  // into kPointers, then the temps
  Expression value;
};

struct Launch {
  std::string name, file, function;
  int warps = 0, shared = 0;  // shared: bytes of dynamic shared memory
  std::array<Expression, 3> grid;
  std::vector<Argument> arguments;
};

struct Manifest {
  std::string key;
  std::vector<std::pair<std::string, Expression>> temps;
  std::vector<Launch> launches;
};

class ManifestParser {
 public:
  static absl::Status parse(absl::string_view text, Manifest* out) {
    ManifestParser parser{out};
    int number = 0;
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
      if (words.size() != 3 || words[0] != "blocksparse-manifest" || words[1] != "1") {
        return absl::InvalidArgumentError("not a manifest of version 1");
      }
      out_.key = std::string(words[2]);
      return absl::OkStatus();
    }
    if (words[0] == "temp" && words.size() == 3) {
      out_.temps.emplace_back(words[1], Expression());
      return Expression::parse(words[2], symbol_index, &out_.temps.back().second);
    }
    if (words[0] == "launch" && words.size() >= 9) return parse_launch(words);
    return absl::InvalidArgumentError(absl::StrCat("cannot read '", words[0], "' of ", words.size(), " words"));
  }

  absl::Status parse_launch(const std::vector<absl::string_view>& words) {
    Launch launch;
    launch.name = std::string(words[1]), launch.file = std::string(words[2]), launch.function = std::string(words[3]);
    if (!absl::SimpleAtoi(words[4], &launch.warps) || !absl::SimpleAtoi(words[5], &launch.shared)) {
      return absl::InvalidArgumentError("warps and shared memory must be numbers");
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
