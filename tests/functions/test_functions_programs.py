"""Programs in the spirit of OpenAI's, run as theirs would be: unedited, under openai_runner.py."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent


def run(name, *arguments):
    program = [sys.executable, str(HERE / "openai_runner.py"), str(HERE / "programs" / name), *arguments]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return [[float(number) for number in line.split()] for line in done.stdout.splitlines()]


def test_attention():
    rows = run("attention.py")
    assert len(rows) == 2
    assert max(error for row in rows for error in row) < 1e-5


def test_text():
    """With neither float16 nor recomputation, with the latter, with both."""
    plain, again, half = np.split(np.ravel(run("text.py", *"0 0 + 0 1 + 1 1".split())), 3)
    for losses in (plain, half):
        assert losses[0] == pytest.approx(5.545, abs=0.2)  # log 256
        assert losses[-1] < 4
    np.testing.assert_allclose(again, plain, rtol=0, atol=0.002)


def test_images():
    (before,), *during, (after,) = run("images.py")
    assert during[-1][0] < during[0][0] - 1
    assert before - 1 > after  # the averaged weights have followed
