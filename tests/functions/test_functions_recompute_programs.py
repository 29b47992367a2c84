"""200 random programs: gradients with recompute=True are the plain ones, or refused in the decorator's own words."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).with_name("recompute_programs.py")


@pytest.mark.slow
def test_random_programs_have_the_plain_gradients_or_are_refused():
    halves = [
        subprocess.Popen(
            [sys.executable, PROGRAMS, count, first],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for count, first in (("100", "0"), ("100", "100"))
    ]
    for half in halves:
        printed, _ = half.communicate()
        print(printed)
        assert half.returncode == 0, printed
        assert "eager              equal" in printed and "function           equal" in printed
