"""What benchmarks/ has measured of the paper's own configurations, which few machines can train."""

from __future__ import annotations

import json
from pathlib import Path

from ..config import load, names

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"


def steps() -> dict[str, dict]:
    """By configuration, the row of its own length that takes least time a sequence; empty without the file.

    Rows of other programs, measured beside, name themselves ("pytorch").
    """
    path = RESULTS / "model_step.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    best: dict[str, dict] = {}
    for row in sorted(rows, key=lambda row: row["seconds"] / row["batch"]):
        name = row["config"]
        if "pytorch" not in row and name in names() and row["positions"] == load(name).n_ctx:
            best.setdefault(name, row)
    return best


def memory() -> dict[tuple[int, str], int | None]:
    """Peak bytes by (positions, way), of this library; None where it did not fit."""
    path = RESULTS / "model_memory.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {(row["n"], row["way"]): row["peak"] for row in map(json.loads, lines) if "of" not in row}
