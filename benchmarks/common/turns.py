"""Processes that get ready side by side, and then have the device one after the other, in their order.

A folder tells how far they are: N.ready, the process of turn N waits; N.ended, it is gone, and its memory with it. The
first turn begins when all are ready, as what compiles also runs on the device.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

VARIABLE = "SPARSE_ATTENTION_TURN"  # FOLDER:NUMBER:COUNT, of a process that has a turn


def ticket(folder: Path, number: int, count: int) -> dict[str, str]:
    """What the environment of the process of turn `number` has to hold."""
    return {VARIABLE: f"{folder}:{number}:{count}"}


def end(folder: Path, number: int) -> None:
    (folder / f"{number}.ended").touch()


def await_turn() -> None:
    """Returns when this process has the device; at once in a process that has no turn."""
    if VARIABLE not in os.environ:
        return
    folder, number, count = os.environ[VARIABLE].rsplit(":", 2)
    (Path(folder) / f"{number}.ready").touch()
    while not _over(Path(folder), int(number), int(count)):
        time.sleep(0.05)


def _over(folder: Path, number: int, count: int) -> bool:
    """Whether all before turn `number` have ended and nobody behind it is still getting ready."""
    found = {path.name for path in folder.iterdir()}
    gone = {turn for turn in range(count) if f"{turn}.ended" in found}
    ready = {turn for turn in range(count) if f"{turn}.ready" in found}
    return gone >= set(range(number)) and len(gone | ready) == count
