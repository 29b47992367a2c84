"""What a run's folder holds, read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, stdev

from .. import metrics, runs
from ..config import Config
from .steps import Places

ALONE = (
    "alone.json"  # of a run that shared its device: {"first": step, "last": step} that it had it for itself
)


@dataclass(frozen=True)
class Mean:
    """Of several seeds, and its standard error; a single value says nothing of how others differ."""

    values: tuple[float, ...]

    @property
    def value(self) -> float:
        return mean(self.values)

    @property
    def error(self) -> float | None:
        return stdev(self.values) / len(self.values) ** 0.5 if len(self.values) > 1 else None

    def __str__(self) -> str:
        return f"{self.value:.4f}" + ("" if self.error is None else f" +- {self.error:.4f}")


def read(path: Path, *fields: str):
    """The JSON in the file, a record with these fields or a list of such; None where there is none.

    Raises ValueError that names the file where it is anything else.
    """
    if not path.exists():
        return None
    wanted = "what a step of paper.py wrote; delete it, and the same command goes on"
    found = runs.read_json(path, wanted)
    records = found if isinstance(found, list) and found else [found]
    if not all(isinstance(each, dict) and each.keys() >= set(fields) for each in records):
        raise ValueError(
            f"{path} is damaged (no records of {', '.join(fields) or 'fields'}); wanted: {wanted}"
        )
    return found


def bits(folder: Path) -> float | None:
    """Of the test split, as train.py --test scored the run; None where it has not."""
    scores = read(folder / runs.SCORES, "bits")
    return scores[0]["bits"] if scores else None


def trained(folders: Iterable[Path]) -> list[Path]:
    return [folder for folder in folders if bits(folder) is not None]


def settings(folder: Path) -> Config:
    return runs.read_config(folder)


def device(folder: Path) -> dict:
    """device.json's content; empty where the run has none."""
    return read(folder / "device.json") or {}


def seconds(folder: Path) -> float | None:
    """The median of a run's steps, without the first three, which compile; None where it has no more.

    Steps of trainings that share a device say nothing of one: where alone.json names the steps during which this
    one did not, theirs alone.
    """
    alone = read(folder / ALONE) or {}
    first, last = alone.get("first", 3), alone.get("last", float("inf"))
    steps = [
        float(row[3]) for row in metrics.read_rows(folder / metrics.NAME) if first <= int(row[0]) <= last
    ]
    return median(steps) if steps else None


def committed(places: Places, kind: str) -> tuple[str, dict] | None:
    """Name and card of the committed model that samples of this kind are of; None where they are of a run."""
    name = places.scale.shown[kind]
    return None if "/" in name else (name, read(runs.PRETRAINED / name / "card.json"))


def table(head: list[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """A table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(map(str, line))} |" for line in lines]
