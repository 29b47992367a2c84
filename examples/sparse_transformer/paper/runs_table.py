"""Every run: its size, length and seed, where it was trained; and the commands that made the page."""

from __future__ import annotations

import shlex
from pathlib import Path

from .. import runs
from .results import bits, device, settings, table, trained
from .steps import Places, Step, train_words


def section(places: Places, steps: list[Step]) -> list[str]:
    lines = ["## All runs", ""]
    every = [each.folder(places.out) for each in places.scale.trainings]
    folders = trained(every)
    rows = [_row(folder, places.out) for folder in folders]
    head = ["run", "configuration", "parameters", "steps, windows, positions", "seed", "bits", "GB"]
    lines += table(head, rows) if rows else ["Empty: nothing has been trained yet."]
    if missing := [str(folder.relative_to(places.out)) for folder in every if folder not in folders]:
        lines += ["", f"Without a score: {', '.join(missing)}."]
    lines += ["", *_places(folders), "## Commands", ""]
    done = [step for step in steps if step.makes.exists()]
    if not done:
        return [*lines, "Empty: none has run yet."]
    own = {
        folder / runs.SCORES: train_words(places, training, settings(folder).changes())
        for training in places.scale.trainings
        if bits(folder := training.folder(places.out)) is not None
    }
    commands = [f"$ python examples/{shlex.join(own.get(step.makes, step.words))}" for step in done]
    return [*lines, "What made this page, in its order:", "", "```console", *commands, "```"]


def _row(folder: Path, out: Path) -> list[str]:
    own, where = settings(folder), device(folder)
    return [
        str(folder.relative_to(out)),
        f"`{own.name}`, {', '.join(map(str, own.layer_modes))}",
        f"{where['parameters']:,}" if where else "",
        f"{own.steps:,}, {own.batch}, {own.n_ctx:,}",
        own.seed,
        f"{bits(folder):.4f}",
        f"{where['peak_bytes'] / 1e9:.2f}" if where else "",
    ]


def _places(folders: list[Path]) -> list[str]:
    """The devices and versions that trained them, each once."""
    said = dict.fromkeys(
        f"{found['device']}; TensorFlow {found['tensorflow']}, Python {found['python']}; kernels: {found['kernel']}"
        for found in map(device, folders)
        if found
    )
    return [f"Trained on {'; and on '.join(said)}.", ""] if said else []
