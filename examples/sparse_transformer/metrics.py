"""metrics.csv: a row for each step of a run."""

from __future__ import annotations

from pathlib import Path

NAME = "metrics.csv"
COLUMNS = ["step", "bits", "gradient_norm", "seconds", "learning_rate", "valid_bits"]
REQUIRED = 4  # earlier runs have no more


def read_rows(path: Path) -> list[list[str]]:
    """The rows below the heading, one for each step, those left out that a kill cut short; none without a file."""
    if not path.exists():
        return []
    rows = {}
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n")[
        :-1
    ]:  # the last has no end of line
        row = line.rstrip("\r").split(",")
        if REQUIRED <= len(row) <= len(COLUMNS) and row[0].isdecimal() and all(map(_number, row)):
            rows[int(row[0])] = row + [""] * (len(COLUMNS) - len(row))
    return [rows[step] for step in sorted(rows)]


def _number(text: str) -> bool:
    try:
        float(text or 0)
    except ValueError:
        return False
    return True
