"""Times of repeated runs on a GPU under PyTorch; those by the host's clock, and medians, are the library's."""

from __future__ import annotations

from collections.abc import Callable

from blocksparse.native.machine import median as median
from blocksparse.native.machine import wall as wall


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
