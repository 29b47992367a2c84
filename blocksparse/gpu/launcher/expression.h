// Integer expressions of a manifest, such as `(query_time+127)/128*heads`, parsed once and evaluated at each launch.
// Any text is parsed or refused, and any parsed one has a value or none: in bounded time, memory and depth.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
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
    if (!parser.sum() || !parser.rest.empty()) {
      return absl::InvalidArgumentError(absl::StrCat("bad expression '", text, "' at '", parser.rest, "'"));
    }
    return absl::OkStatus();
  }

  // False where a step leaves int64. A division by zero gives zero: a manifest's divisors are tile sizes, checked with
  // the plan.
  bool value(const int64_t* symbols, int64_t* out) const {
    int64_t stack[kDepth] = {};
    int top = -1;
    for (const Step& step : steps_) {
      if (step.kind == Step::kNumber || step.kind == Step::kSymbol) {
        stack[++top] = step.kind == Step::kNumber ? step.value : symbols[step.value];
        continue;
      }
      const int64_t right = stack[top--];
      int64_t& left = stack[top];
      bool overflows = false;
      switch (step.kind) {
        case '+':
          overflows = __builtin_add_overflow(left, right, &left);
          break;
        case '-':
          overflows = __builtin_sub_overflow(left, right, &left);
          break;
        case '*':
          overflows = __builtin_mul_overflow(left, right, &left);
          break;
        case '<':
          left = std::min(left, right);
          break;
        default:
          overflows = left == INT64_MIN && right == -1;
          left = right == 0 || overflows ? 0 : left / right;
      }
      if (overflows) return *out = 0, false;
    }
    *out = stack[0];
    return true;
  }

 private:
  static constexpr int kDepth = 64;  // most steps, and so most values on the stack; and most open parentheses
  struct Step {                      // in postfix order
    static constexpr char kNumber = '#', kSymbol = '@';
    char kind;  // kNumber, kSymbol, '<' for min or the operator's character
    int64_t value;
  };

  struct Parser {
    absl::string_view rest;
    const Lookup& symbol;
    std::vector<Step>* steps;
    int depth = 0;

    bool sum() { return chain("+-", &Parser::product); }
    bool product() { return chain("*/", &Parser::atom); }

    bool chain(absl::string_view operators, bool (Parser::*operand)()) {
      if (!(this->*operand)()) return false;
      while (!rest.empty() && operators.find(rest[0]) != absl::string_view::npos) {
        const char kind = rest[0];
        rest.remove_prefix(1);
        if (!(this->*operand)() || !push({kind, 0})) return false;
      }
      return true;
    }

    bool push(Step step) {
      if (steps->size() == kDepth) return false;
      steps->push_back(step);
      return true;
    }

    bool skip(absl::string_view text) {
      if (rest.substr(0, text.size()) != text) return false;
      rest.remove_prefix(text.size());
      return true;
    }

    bool atom() {
      if (depth == kDepth) return false;
      ++depth;
      const bool good = skip("(") ? sum() && skip(")") : skip("min(") ? minimum() : word();
      --depth;
      return good;
    }

    bool minimum() { return sum() && skip(",") && sum() && skip(")") && push({'<', 0}); }

    bool word() {
      size_t length = 0;
      while (length < rest.size() &&
             (absl::ascii_isalnum(rest[length]) || rest[length] == '_' || rest[length] == '.')) {
        ++length;
      }
      const absl::string_view name = rest.substr(0, length);
      Step step{Step::kNumber, 0};
      if (!absl::SimpleAtoi(name, &step.value)) {
        step = {Step::kSymbol, symbol(name)};
        if (step.value < 0) return false;
      }
      rest.remove_prefix(length);
      return push(step);
    }
  };

  std::vector<Step> steps_;
};

}  // namespace blocksparse::gpu
