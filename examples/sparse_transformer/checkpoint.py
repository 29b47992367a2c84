"""Checkpoints that a kill at any moment cannot spoil."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .files import replacing
from .formats.npz import read_npz

NAME = "checkpoint.npz"


def save(folder: Path, step: int, variables: dict) -> None:
    with replacing(folder / NAME) as file:
        np.savez(file, step=step, **{name: v.numpy() for name, v in variables.items()})


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
