// Integer expressions of a manifest, such as `(query_time+127)/128*heads`, parsed once and evaluated at each launch.
#pragma once

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace blocksparse::gpu {

// + - * / (rounding towards zero), parentheses and min(a,b) over integers and symbols.
class Expression {
 public:
  // `symbol` gives a name's index in the array that Value reads, -1 for an unknown name.
  using Lookup = std::function<int(absl::string_view)>;

  static absl::Status parse(absl::string_view text, const Lookup& symbol, Expression* out) {
    Parser parser{text, symbol, &out->steps_};
    out->steps_.clear();
    if (!parser.sum() || !parser.rest.empty() || out->steps_.size() > kDepth) {
      return absl::InvalidArgumentError(absl::StrCat("bad expression '", text, "' at '", parser.rest, "'"));
    }
    return absl::OkStatus();
  }

  // A division by zero gives zero: a manifest's divisors are tile sizes, checked with the plan.
  int64_t value(const int64_t* symbols) const {
    int64_t stack[kDepth];
    int top = -1;
    for (const Step& step : steps_) {
      if (step.kind == Step::kNumber || step.kind == Step::kSymbol) {
        stack[++top] = step.kind == Step::kNumber ? step.value : symbols[step.value];
        continue;
      }
      const int64_t right = stack[top--];
      int64_t& left = stack[top];
      switch (step.kind) {
        case '+': left += right; break;
        case '-': left -= right; break;
        case '*': left *= right; break;
        case '<': left = std::min(left, right); break;
        default: left = right == 0 ? 0 : left / right;
      }
    }
    return stack[0];
  }

 private:
  static constexpr int kDepth = 64;
  struct Step {  // in postfix order
    static constexpr char kNumber = '#', kSymbol = '@';
    char kind;  // kNumber, kSymbol, '<' for min or the operator's character
    int64_t value;
  };

  struct Parser {
    absl::string_view rest;
    const Lookup& symbol;
    std::vector<Step>* steps;

    bool sum() { return chain("+-", &Parser::product); }
    bool product() { return chain("*/", &Parser::atom); }

    bool chain(absl::string_view operators, bool (Parser::*operand)()) {
      if (!(this->*operand)()) return false;
      while (!rest.empty() && operators.find(rest[0]) != absl::string_view::npos) {
        const char kind = rest[0];
        rest.remove_prefix(1);
        if (!(this->*operand)()) return false;
        steps->push_back({kind, 0});
      }
      return true;
    }

    bool skip(absl::string_view text) {
      if (rest.substr(0, text.size()) != text) return false;
      rest.remove_prefix(text.size());
      return true;
    }

    bool atom() {
      if (skip("(")) return sum() && skip(")");
      if (skip("min(")) {
        if (!sum() || !skip(",") || !sum() || !skip(")")) return false;
        steps->push_back({'<', 0});
        return true;
      }
      size_t length = 0;
      while (length < rest.size() && (std::isalnum(rest[length]) || rest[length] == '_' || rest[length] == '.')) {
        ++length;
      }
      const absl::string_view word = rest.substr(0, length);
      Step step{Step::kNumber, 0};
      if (!absl::SimpleAtoi(word, &step.value)) {
        step = {Step::kSymbol, symbol(word)};
        if (step.value < 0) return false;
      }
      rest.remove_prefix(length);
      steps->push_back(step);
      return true;
    }
  };

  std::vector<Step> steps_;
};

}  // namespace blocksparse::gpu
