"""A run: the folder that holds all there is of one training.

config.json      the configuration
data.json        the data set it learns: where it lies, its size, a digest
checkpoint.npz   the step, and every variable (checkpoint.py)
metrics.csv      a row for each step (log.py), and TensorBoard's events
score.json       bits of the test split, where train.py --test or evaluate.py --json has scored it
device.json      where it was trained, and how much memory that took (device.py)
lock             held while a training writes here (files.py)

A trained model that is committed, in ../pretrained, has config.json, data.json, weights.npz and card.json
(pretrained.py).
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from .config import Config
from .files import replacing

LARGEST = 1 << 20  # bytes of a configuration; more is none
PRETRAINED = Path(__file__).parents[1] / "pretrained"
WEIGHTS = "weights.npz"
SCORES = "score.json"


def open(name: str | Path) -> Path:
    """The folder of a run, or of the model in ../pretrained that has this name; a folder of that name goes first.

    Raises ValueError that lists the names where it is neither.
    """
    if (Path(name) / "config.json").exists():
        return Path(name)
    names = sorted(path.parent.name for path in PRETRAINED.glob("*/config.json"))
    if str(name) in names:
        return PRETRAINED / name
    known = f", or name a trained model: {', '.join(names)}" if names else ""
    raise ValueError(f"{name} holds no run (no config.json); train one with examples/train.py CONFIG{known}")


def output(folder: Path) -> Path:
    """Where what is made of the folder's model goes: the folder, or runs/NAME where a committed one would change."""
    return Path("runs") / folder.name if folder.parent == PRETRAINED else folder


def read_json(path: Path, wanted: str):
    """What the file holds. Raises ValueError that names it and says what was wanted."""
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError("it is longer than a megabyte")
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); wanted: {wanted}") from error


def write_json(path: Path, content: dict | list) -> None:
    with replacing(path) as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())


def read_config(folder: Path) -> Config:
    path = open(folder) / "config.json"
    wanted = "the configuration that examples/train.py writes"
    fields = read_json(path, wanted)
    try:
        return Config.from_fields(fields)
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); wanted: {wanted}") from error


def check_config(folder: Path, config: Config) -> None:
    """Raises ValueError where the folder's run has another configuration, its length apart."""
    if not (folder / "config.json").exists():
        return
    old, new = asdict(read_config(folder)), asdict(config)
    differing = [k for k in new if old[k] != new[k] and k not in ("checkpoint_every", "steps")]
    if differing:
        changes = ", ".join(f"{k} {old[k]!r} -> {new[k]!r}" for k in differing)
        raise ValueError(f"{folder} holds a run with another configuration ({changes}); choose another --out")


def write_config(folder: Path, config: Config) -> None:
    """Notes the configuration; a run cannot be resumed with another one, its length apart."""
    check_config(folder, config)
    write_json(folder / "config.json", asdict(config))
