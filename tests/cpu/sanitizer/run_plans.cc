// Runs the CPU kernels on plans out of a file, under the compiler's sanitizers: run_plans FILE. FILE holds plans, each
// as its number of int32 (int64) and the int32. Prints a line a plan: what is wrong with it, or "ran": alone, then
// again onto its own results, as the second of two joined passes does; all that without segments and with some.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "blocksparse/cpu/attention.h"

namespace {

using namespace blocksparse;

const Parallel kAlone = {1, [](int64_t count, const std::function<void(int64_t, int64_t)>& body) { body(0, count); }};

// Sizes are exact, so that a kernel that leaves a tensor by one number is reported. Values lie far apart: scores differ
// by thousands.
std::vector<float> numbers(int64_t count) {
  std::vector<float> values(count);
  uint32_t state = 1;
  for (float& value : values) {
    state = state * 1664525u + 1013904223u;
    value = (static_cast<int32_t>(state >> 8) - (1 << 23)) * 4e-6f;
  }
  return values;
}

// Runs of equal numbers, in an order in which they come back.
std::vector<int32_t> segments(int64_t time) {
  std::vector<int32_t> found(time);
  for (int64_t i = 0; i < time; ++i) found[i] = i / 24 * 5 % 7;
  return found;
}

void run(const Plan& plan, const int32_t* query_segments, const int32_t* key_segments) {
  const Shape shape = {1, plan.heads, 8, 24, 1.0f};
  const auto size = [&](int64_t time, int64_t width) { return time * plan.heads * width; };
  const auto key_size = [&](int64_t width) { return int64_t{plan.key_time} * plan.key_heads * width; };
  const auto q = numbers(size(plan.query_time, shape.head_dim)), k = numbers(key_size(shape.head_dim));
  const auto v = numbers(key_size(shape.value_dim)), dout = numbers(size(plan.query_time, shape.value_dim));
  const auto dlse = numbers(size(plan.query_time, 1));
  std::vector<float> out(dout.size()), lse(dlse.size()), dq(q.size()), dk(k.size()), dv(v.size());
  const Inputs<float> in = {q.data(), k.data(), v.data(), query_segments, key_segments};
  for (const bool onto : {false, true}) attention_forward(shape, plan, in, out.data(), lse.data(), onto, kAlone);
  const Gradient<float> gradient = {out.data(), dout.data(), lse.data(), dlse.data(), dq.data(), dk.data(), dv.data()};
  for (const bool onto : {false, true}) {
    std::vector<float> workspace(backward_workspace(shape, plan));
    attention_backward(shape, plan, in, gradient, onto, workspace.data(), kAlone);
  }
}

}  // namespace

int main(int, char** arguments) {
  FILE* file = std::fopen(arguments[1], "rb");
  if (file == nullptr) return 2;
  for (int64_t count; std::fread(&count, sizeof(count), 1, file) == 1;) {
    std::vector<int32_t> words(count);
    if (std::fread(words.data(), sizeof(int32_t), count, file) != static_cast<size_t>(count)) return 2;
    Plan plan;
    const std::string error = read_plan(words.data(), count, &plan);
    if (error.empty()) {
      run(plan, nullptr, nullptr);
      run(plan, segments(plan.query_time).data(), segments(plan.key_time).data());
    }
    std::puts(error.empty() ? "ran" : error.c_str());
    std::fflush(stdout);
  }
  std::fclose(file);
}
