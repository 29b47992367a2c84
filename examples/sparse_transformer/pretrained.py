"""Trained models that are committed: a run's averaged weights in float16, with what it takes to train them again.

config.json    the configuration, its seed with it
data.json      the data set: its name, size and digest
weights.npz    the two vectors of flat.py, float16
card.json      what was scored, and the commands that made it
held_out.*     windows of the test split, to show and to score without the data set: .txt one after the other, .png
               images side by side, from the left and the top
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from . import checkpoint, origin, runs
from .config import IMAGES, Config
from .files import replacing
from .formats.images import picture_of
from .formats.npz import read_npz
from .runs import WEIGHTS


def write(run: Path, folder: Path, card: dict) -> None:
    """Packs a run into a new folder. Raises ValueError where it holds no checkpoint, or float16 no such weights."""
    arrays = checkpoint.read(run)
    if arrays is None:
        raise ValueError(f"{run} holds no checkpoint yet; train it with examples/train.py")
    vectors = {name: arrays[f"adam_w/{name}_average"].astype(np.float16) for name in ("decayed", "undecayed")}
    if not all(np.isfinite(vector).all() for vector in vectors.values()):
        raise ValueError(f"{run} has weights above float16's 65,504, or none that are numbers")
    config = runs.read_config(run)
    runs.write_json(folder / "config.json", asdict(config))
    if (noted := origin.read(run)) is not None:
        here = None if noted.path is None else Path(noted.path).name
        origin.write(folder, replace(noted, path=here))
    with replacing(folder / WEIGHTS) as file:
        np.savez(file, **vectors)
    runs.write_json(folder / "card.json", {**card, "steps": int(arrays["step"])})


def read(folder: Path) -> dict[str, np.ndarray] | None:
    """The averaged weights by the names that a checkpoint has for them, float32; None where the folder has none."""
    path = folder / WEIGHTS
    if not path.exists():
        return None
    try:
        arrays = read_npz(path, names=("decayed", "undecayed"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); get it again with git checkout") from error
    return {f"adam_w/{name}_average": vector.astype(np.float32) for name, vector in arrays.items()}


ROW = 8  # images of held_out.png beside each other


def write_held_out(folder: Path, config: Config, tokens: np.ndarray) -> None:
    """tokens uint8 [windows, n_ctx], of images a multiple of ROW."""
    if config.data in IMAGES:
        side, _, channels = config.grid
        rows = tokens.reshape(-1, ROW, side, side, channels).transpose(0, 2, 1, 3, 4)
        picture = rows.reshape(-1, ROW * side, channels)
        with replacing(folder / "held_out.png") as file:
            picture_of(picture).save(file, "PNG", optimize=True)
    else:
        with replacing(folder / "held_out.txt") as file:
            file.write(tokens.tobytes())


def held_out(folder: Path, config: Config) -> np.ndarray:
    """uint8 [windows, n_ctx]. Raises ValueError where the folder has none."""
    try:
        if config.data not in IMAGES:
            return np.frombuffer((folder / "held_out.txt").read_bytes(), np.uint8).reshape(-1, config.n_ctx)
        from PIL import Image

        side, _, channels = config.grid
        with Image.open(folder / "held_out.png", formats=("PNG",)) as image:
            picture = np.asarray(image).reshape(-1, side, ROW, side, channels)
        return picture.transpose(0, 2, 1, 3, 4).reshape(-1, config.n_ctx)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} has no held-out windows that can be read ({error})") from error
