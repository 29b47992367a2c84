"""Checkpoints that a kill at any moment cannot spoil."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from .files import replacing
from .formats.npz import read_npz

NAME = "checkpoint.npz"


class Writer:
    """Writes checkpoints while the training goes on: only the copy of the variables to the host's memory waits."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.thread = ThreadPoolExecutor(1)
        self.written: Future | None = None

    def save(self, step: int, variables: dict) -> None:
        """Begins to write, once the one before is written. Raises OSError where that one could not be."""
        self.wait()
        arrays = {name: variable.numpy() for name, variable in variables.items()}
        self.written = self.thread.submit(_write, self.folder, step, arrays)

    def wait(self) -> None:
        """Until the last one is on the disk. Raises OSError where it could not be written."""
        written, self.written = self.written, None
        if written:
            written.result()

    def close(self) -> None:
        """Until nothing is being written any more, well or not."""
        self.thread.shutdown()


def _write(folder: Path, step: int, arrays: dict[str, np.ndarray]) -> None:
    with replacing(folder / NAME) as file:
        np.savez(file, step=step, **arrays)


def read(folder: Path) -> dict[str, np.ndarray] | None:
    """Step and variables by name, or None where there is no checkpoint."""
    path = folder / NAME
    if not path.exists():
        return None
    try:
        arrays = read_npz(path)
        step = arrays.get("step")
        if step is None or step.shape or step.dtype.kind != "i" or step < 0:
            raise ValueError("it holds no number of steps")
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it to start over") from error
    return arrays


def steps_done(folder: Path) -> int:
    """Steps of the checkpoint: 0 where there is none."""
    arrays = read(folder)
    return 0 if arrays is None else int(arrays["step"])


def restore(folder: Path, variables: dict) -> int:
    """Sets the variables and returns the number of steps done: 0 where there is no checkpoint."""
    arrays = read(folder)
    if arrays is None:
        return 0
    step = int(arrays.pop("step"))
    differing = sorted(
        name
        for name in arrays.keys() | variables.keys()
        if name not in arrays
        or name not in variables
        or arrays[name].shape != tuple(variables[name].shape)
        or arrays[name].dtype != np.dtype(str(variables[name].dtype))
    )
    if differing:
        raise ValueError(f"{folder / NAME} belongs to another model: {', '.join(differing[:3])} ...")
    for name, variable in variables.items():
        variable.assign(arrays[name])
    return step
