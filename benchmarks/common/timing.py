"""Times of repeated runs, and the one function that makes one number of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence


def median(times: Sequence[float]) -> float:
    """What every table gives of repeated runs: one slow run among them (another process, a clock that fell) is
    ignored; of an even number the mean of the middle two.
    """
    return statistics.median(times)


def wall(step: Callable, repeats: int, warm_up: int = 1) -> list[float]:
    """Seconds of each of `repeats` runs by the host's clock, after `warm_up` more; step waits for its own result."""
    times = []
    for _ in range(warm_up + repeats):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    return times[warm_up:]


def events(torch, step: Callable, repeats: int, flush: Callable, warm_up: int) -> list[float]:
    """Milliseconds on the GPU of each of `repeats` runs, between two events on PyTorch's stream, after `warm_up` more.

    flush: queued before each run, and long enough for the host to queue the run meanwhile. It empties the caches and
    hides what a launch costs the host.
    """
    pairs = []
    for _ in range(warm_up + repeats):
        flush()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step()
        end.record()
        pairs.append((start, end))
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in pairs[warm_up:]]
