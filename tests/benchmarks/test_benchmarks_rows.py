"""Rows have one name in the README, in docs/results.md and under the bars of the pictures."""

import importlib.util
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROW = re.compile(
    r"^\| (?:\d+x\d+x\d+x\d+ )?(`(?:all|local|strided|fixed)`(?:, (?:[lc]=)?\d+)*) \|", re.MULTILINE
)


def rows(page, heading):
    """What the rows below a heading of the page call their patterns."""
    section = (
        (ROOT / page).read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    )
    return [row.replace("`", "") for row in ROW.findall(section)]


def labels():
    spec = importlib.util.spec_from_file_location("cases", ROOT / "benchmarks/common/cases.py")
    cases = sys.modules["cases"] = importlib.util.module_from_spec(spec)  # dataclasses look there
    spec.loader.exec_module(cases)
    return {case.pattern_label for case in (*cases.CPU, *cases.GPU)}


def test_a_row_is_called_alike_everywhere():
    for page, heading, count in (
        ("README.md", "Speed", 6),
        ("docs/results.md", "On a CPU", 4),
        ("docs/results.md", "On a GPU", 10),
    ):
        found = rows(page, heading)
        assert len(found) >= count and set(found) <= labels(), (page, found)
