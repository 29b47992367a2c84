"""This machine's processor, what this process holds of its memory, and times by its clock."""

from __future__ import annotations

import contextlib
import functools
import platform
import statistics
import time
from collections.abc import Callable, Sequence


@functools.cache
def cpu_field(field: str) -> str:
    """A field of the first processor in /proc/cpuinfo; empty where there is none."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name.strip() == field:
                return value.strip()
    return ""


def processor() -> str:
    """The CPU's name; where the system does not tell it, its architecture."""
    return cpu_field("model name") or platform.machine()


def peak_memory() -> int:
    """Bytes, the most that this process has held. Not ru_maxrss: a child's begins at what its parent held."""
    with open("/proc/self/status", encoding="utf-8") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


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
