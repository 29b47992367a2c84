// Tasks handed out by and by, so that threads that finish early take more. Which thread runs a task changes nothing.
#pragma once

#include <algorithm>
#include <atomic>

#include "attention.h"

namespace blocksparse {

// Calls worker(take) on several threads; take() is the next task's number, or -1 when none is left. A thread gets runs
// of up to `neighbours` tasks, which share lines and pages of memory: on several threads these would move between
// caches.
template <typename Worker>
void run_tasks(const Parallel& parallel, int64_t tasks, int64_t neighbours, const Worker& worker) {
  const int64_t run = std::max<int64_t>(1, std::min(neighbours, tasks / (4 * parallel.threads)));
  std::atomic<int64_t> shared{0};
  const int64_t workers = std::min<int64_t>(parallel.threads, (tasks + run - 1) / run);
  if (workers == 0) return;
  parallel.run(workers, [&](int64_t begin, int64_t end) {
    if (begin == end) return;
    int64_t next = 0, stop = 0;
    worker([&]() -> int64_t {
      if (next == stop) {
        next = shared.fetch_add(run, std::memory_order_relaxed);
        stop = std::min(next + run, std::max(next, tasks));
      }
      return next < stop ? next++ : -1;
    });
  });
}

}  // namespace blocksparse
