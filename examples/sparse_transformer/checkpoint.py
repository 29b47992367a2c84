"""Checkpoints that a kill at any moment cannot spoil, and runs: the folder that holds all there is of one training."""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import asdict
from pathlib import Path

import numpy as np

from .config import Config

NAME = "checkpoint.npz"


def save(folder: Path, step: int, variables: dict) -> None:
    """Writes beside the checkpoint that is there, then takes its name: a reader sees the one or the other, whole."""
    partial = folder / f"{NAME}.partial"
    try:
        with open(partial, "wb") as file:
            np.savez(file, step=step, **{name: v.numpy() for name, v in variables.items()})
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, folder / NAME)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def read(folder: Path) -> dict[str, np.ndarray] | None:
    """Step and variables by name, or None where there is no checkpoint."""
    path = folder / NAME
    if not path.exists():
        return None
    try:
        with np.load(path) as arrays:
            return dict(arrays)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it to start over") from error


def restore(folder: Path, variables: dict) -> int:
    """Sets the variables and returns the number of steps done: 0 where there is no checkpoint."""
    arrays = read(folder)
    if arrays is None:
        return 0
    step = int(arrays.pop("step"))
    differing = sorted(arrays.keys() ^ variables.keys())
    if differing:
        raise ValueError(f"{folder / NAME} belongs to another model: {', '.join(differing[:3])} ...")
    for name, variable in variables.items():
        variable.assign(arrays[name])
    return step


def write_config(folder: Path, config: Config) -> None:
    """Notes the configuration; a run cannot be resumed with another one, its length apart."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.json"
    if path.exists():
        old, new = asdict(read_config(folder)), asdict(config)
        differing = [k for k in new if old[k] != new[k] and k not in ("checkpoint_every", "steps")]
        if differing:
            changes = ", ".join(f"{k} {old[k]!r} -> {new[k]!r}" for k in differing)
            raise ValueError(
                f"{folder} holds a run with another configuration ({changes}); choose another --out"
            )
    path.write_text(json.dumps(asdict(config), indent=2) + "\n")


def read_config(folder: Path) -> Config:
    path = folder / "config.json"
    if not path.exists():
        raise ValueError(f"{folder} holds no run (no config.json); train one with examples/train.py CONFIG")
    fields = json.loads(path.read_text())
    fields["grid"] = tuple(fields["grid"])
    fields["layer_modes"] = tuple(m if isinstance(m, str) else tuple(m) for m in fields["layer_modes"])
    return Config(**fields)
