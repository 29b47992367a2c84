// What a step's key says (../steps.py writes it), as sizes of tensors: a kernel reads as far as its key tells it to.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"

namespace blocksparse::gpu {

struct StepGroup {
  int64_t members, slots, words, places;
};

struct StepShape {
  int64_t batch, width, heads, key, value, hidden, count;
  bool ragged, early;
  std::vector<StepGroup> groups;

  int64_t qkv() const { return heads * (2 * key + value); }
  int64_t rows() const { return ragged ? batch : 1; }
  int64_t cache(const StepGroup& group) const { return batch * group.slots * group.members * (key + value); }

  // step-f16-b1-w512-h8-k64-v64-f2048-n256-r0-c0-e1-g8.3201.100.2: no -sm, which is the device's to say.
  static absl::Status parse(absl::string_view text, StepShape* out) {
    *out = StepShape{};
    std::map<char, int64_t> found;
    std::vector<absl::string_view> words = absl::StrSplit(text, '-');
    bool good = words.size() > 2 && words[0] == "step";
    for (size_t i = 2; good && i < words.size(); ++i) {
      const absl::string_view word = words[i];
      const std::vector<absl::string_view> parts = absl::StrSplit(word.substr(std::min<size_t>(1, word.size())), '.');
      std::vector<int64_t> numbers(parts.size());
      for (size_t j = 0; j < parts.size(); ++j) {
        good = good && absl::SimpleAtoi(parts[j], &numbers[j]) && numbers[j] >= 0 && numbers[j] <= INT32_MAX;
      }
      if (good && word[0] == 'g' && numbers.size() == 4) {
        out->groups.push_back({numbers[0], numbers[1], numbers[2], numbers[3]});
      } else {
        good = good && numbers.size() == 1 && found.emplace(word[0], numbers[0]).second;
      }
    }
    for (char name : {'b', 'w', 'h', 'k', 'v', 'f', 'n', 'r', 'c', 'e'}) good = good && found.count(name) == 1;
    if (!good || out->groups.empty()) {
      return absl::InvalidArgumentError(absl::StrCat("'", text, "' names no step of decoding"));
    }
    out->batch = found['b'], out->width = found['w'], out->heads = found['h'], out->key = found['k'];
    out->value = found['v'], out->hidden = found['f'], out->count = found['n'], out->ragged = found['r'] != 0;
    out->early = found['e'] != 0;
    return absl::OkStatus();
  }
};

}  // namespace blocksparse::gpu
