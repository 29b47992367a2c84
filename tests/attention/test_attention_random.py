"""200 random attentions against the float64 oracle, in every way of running."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("random_attentions.py")


@pytest.mark.slow
def test_random_attentions_equal_the_oracle():
    halves = [
        subprocess.Popen(
            [sys.executable, SCRIPT, "100", first],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for first in ("0", "100")
    ]
    ways = set()
    for half in halves:
        printed, _ = half.communicate()
        assert half.returncode == 0, printed
        ways |= set(re.findall(r"[1-9]\d* ([a-z]+)(?=,)", printed.splitlines()[-1]))
    assert ways == {"eager", "reference", "dense", "function", "unknown", "xla", "graph"}
