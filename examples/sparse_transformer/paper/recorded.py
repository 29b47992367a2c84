"""What benchmarks/ has measured of the paper's own configurations, which few machines can train."""

from __future__ import annotations

import json
from pathlib import Path

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"


def steps() -> dict[str, dict]:
    """By configuration, the row of its largest batch at its own length and as it is; empty without the file."""
    path = RESULTS / "model_step.json"
    if not path.exists():
        return {}
    rows: dict[str, dict] = {}
    for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
        name, old = row["config"], rows.get(row["config"])
        if not row["deterministic"] and (old is None or row["batch"] > old["batch"]):
            if not name.startswith("music_") or row["positions"] == int(name.removeprefix("music_")):
                rows[name] = row
    return rows


def memory() -> dict[tuple[int, str], int | None]:
    """Peak bytes by (positions, way); None where it did not fit."""
    path = RESULTS / "model_memory.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {(row["n"], row["way"]): row["peak"] for row in map(json.loads, lines)}
