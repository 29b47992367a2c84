"""The kernels' numbers in Triton's interpreter, in a process without TensorFlow (the two cannot share one)."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("interpreter_cases.py")
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


@pytest.fixture(scope="module")
def lines():
    """What the script printed: one record a case."""
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return {line["case"]: line for line in map(json.loads, done.stdout.splitlines())}


CASES = """causal|causal split|causal merged|local|fixed, per head|strided, 24 rows a class|one order a head|empty rows
uneven heads|rectangular|value_dim differs|dims of 8|dims of 96|wide tiles|blocks of 64 in tiles of 32|wide offsets
negative scale|scale of zero|float16|float16, permuted|bfloat16|NaN key|NaN key, split|NaN key, float16
float16, dims of 160|rows that see nothing or all|closed, rows that see nothing or all
closed, several column tiles|closed, dims differ|NaN key, closed
joined|joined, float16|joined, bfloat16, dims differ|joined, closed first|joined, three passes
joined, rows that neither shows a key|joined, rows that one shows no key, split
NaN key, joined|NaN key, joined, closed
segments|segments in no order|segments, one|segments, per head|segments, one order a head
segments, closed|segments, closed, several column tiles|segments, rectangular, many column tiles
segments, wide tiles|segments, joined|segments, key heads|segments, key heads, order
key heads|key heads, split, one for all|key heads, a layout a head|key heads, small granules|key heads, closed
key heads, joined, dims differ|key heads, wide|NaN key, key heads
fewer rows|fewer rows, split, wide|fewer rows, dims differ|fewer rows, closed|fewer rows, joined, key heads
fewer rows, segments|fewer rows, segments, looking ahead
rows of 192|rows of 192, float16, split, a layout a head|rows of 192, small columns|rows of 192, order, dims differ
rows of 192, closed|rows of 192, closed, several column tiles|rows of 192, key heads|rows of 192, joined
rows of 192, segments|rows of 192, segments in no order, closed|rows of 192, segments, fewer rows
rows of 192, fewer rows|NaN key, rows of 192"""


@pytest.mark.parametrize("case", CASES.replace("\n", "|").split("|"))
def test_numbers(lines, case):
    """Relative errors within the dtype's rounding; of poisoned cases, rows reached that should not be: none."""
    tolerance = lines[case]["tolerance"]
    wrong = {name: error for name, error in lines[case]["errors"].items() if not 0 <= error <= tolerance}
    assert not wrong, f"{case}: {wrong}, allowed {tolerance}"


def test_every_case_is_listed(lines):
    assert set(lines) == set(CASES.replace("\n", "|").split("|"))
