"""Rows have one name in the README, in docs/results.md and under the bars of the pictures."""

import re
from pathlib import Path

from benchmarks.common import cases

ROOT = Path(__file__).parents[2]
LABELS = {case.pattern_label for case in (*cases.CPU, *cases.GPU)}
ROW = re.compile(r"^\| (?:\d+x\d+x\d+x\d+ )?(`(?:all|local|strided|fixed)`(?:, [^|]*)?) \|", re.MULTILINE)


def rows(page, heading):
    """What the rows below a heading of the page call their patterns."""
    section = (
        (ROOT / page).read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    )
    return [row.replace("`", "") for row in ROW.findall(section)]


def test_a_row_is_called_alike_everywhere():
    for page, heading, count in (
        ("README.md", "Speed", 6),
        ("docs/results.md", "On a CPU", 4),
        ("docs/results.md", "On a GPU", 10),
    ):
        found = rows(page, heading)
        assert len(found) >= count and set(found) <= LABELS, (page, found)
