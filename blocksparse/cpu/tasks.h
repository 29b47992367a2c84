// Tasks handed out one by one, so that threads that finish early take more. Which thread runs a task changes nothing.
#pragma once

#include <algorithm>
#include <atomic>

#include "attention.h"

namespace blocksparse {

// Calls worker(take) on several threads; take() is the next task's number, or -1 when none is left.
template <typename Worker>
void run_tasks(const Parallel& parallel, int64_t tasks, const Worker& worker) {
  std::atomic<int64_t> next{0};
  const auto take = [&] {
    const int64_t task = next.fetch_add(1, std::memory_order_relaxed);
    return task < tasks ? task : int64_t{-1};
  };
  const int64_t workers = std::min<int64_t>(parallel.threads, tasks);
  if (workers == 0) return;
  parallel.run(workers, [&](int64_t begin, int64_t end) {
    if (begin < end) worker(take);
  });
}

}  // namespace blocksparse
