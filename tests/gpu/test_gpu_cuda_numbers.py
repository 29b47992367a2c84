"""The numbers of the kernels in CUDA C++, whose sources are compiled for the CPU over an emulated warp."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("cuda_cases.py")
pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed"),
    pytest.mark.slow,
]


@pytest.mark.parametrize("capability, least", [(75, 43), (70, 11)])
def test_numbers(capability, least):
    """Relative errors within the dtype's rounding; of poisoned cases, rows reached that should not be: none."""
    done = subprocess.run([sys.executable, str(SCRIPT), str(capability)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    lines = list(map(json.loads, done.stdout.splitlines()))
    assert len(lines) >= least
    wrong = [
        line
        for line in lines
        if not all(0 <= error <= line["tolerance"] for error in line["errors"].values())
    ]
    assert not wrong
