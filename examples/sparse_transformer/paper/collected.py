"""The page's numbers as JSON, for whoever draws or compares them: report.json."""

from __future__ import annotations

from pathlib import Path

from .. import runs
from .results import device, read, seconds, settings, trained
from .steps import Places


def content(places: Places) -> dict:
    """Of every run that is scored: configuration, what changes in it, score, seconds a step, device; and the scores
    of Table 3, a list for each model."""
    folders = trained(each.folder(places.out) for each in places.scale.trainings)
    return {
        "scale": places.scale.name,
        "runs": {str(folder.relative_to(places.out)): _run(folder) for folder in folders},
        "contexts": [read(path) for path in sorted(places.out.glob("context_*.json"))],
    }


def _run(folder: Path) -> dict:
    own = settings(folder)
    return {
        "config": own.name,
        "changes": own.changes(),
        "test": read(folder / runs.SCORES)[0],
        "seconds": seconds(folder),
        "device": device(folder),
    }
