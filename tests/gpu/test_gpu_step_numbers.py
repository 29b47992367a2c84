"""The kernels of a decoding step in Triton's interpreter, in a process without TensorFlow, against NumPy."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from blocksparse.gpu import steps
from blocksparse.gpu.steps import Group, StepKey

SCRIPT = Path(__file__).with_name("step_interpreter.py")
has_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
CASES = """one row|one row, float16|one row, value wider|three rows|three rows at positions of their own, float16
thirty-three rows|two caches|cut draws"""
KEY = "step-f16-b1-w512-h8-k64-v64-f2048-n256-r0-c1-e1-g6.3201.100.2-g2.129.4.1-sm90"


@pytest.fixture(scope="module")
def lines():
    """What the script printed: one record a case."""
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return {line["case"]: line for line in map(json.loads, done.stdout.splitlines())}


@has_triton
@pytest.mark.parametrize("case", CASES.replace("\n", "|").split("|"))
def test_steps_are_numpys(lines, case):
    """Logits, caches and streams within the dtype's rounding, and the same tokens."""
    errors, allowed = lines[case]["errors"], 2e-3 if "float16" in case else 2e-6
    assert errors.pop("tokens") == 0
    wrong = {name: error for name, error in errors.items() if not 0 <= error <= allowed}
    assert not wrong, f"{case}: {wrong}, allowed {allowed}"


@has_triton
@pytest.mark.parametrize("case", ["draws", "draws, cut"])
def test_draws_have_the_softmax_frequencies(lines, case):
    line = lines[case]
    logits, counts = np.array(line["logits"]) / line["temperature"], np.array(line["counts"])
    order = np.argsort(-logits)[: line["top_k"]]
    chance = np.exp(logits[order] - logits.max())
    needed = np.searchsorted(np.cumsum(chance / chance.sum()), line["top_p"]) + 1
    order, chance = order[:needed], chance[:needed] / chance[:needed].sum()
    assert counts[order].sum() == counts.sum()
    deviation = np.sqrt(counts.sum() * chance * (1 - chance) + 1)
    assert (abs(counts[order] - counts.sum() * chance) < 4 * deviation).all()


@has_triton
def test_every_case_is_listed(lines):
    assert set(lines) == {*CASES.replace("\n", "|").split("|"), "draws", "draws, cut"}


def test_a_key_is_read_back():
    key = steps.parse(KEY)
    assert key.groups == (Group(6, 3201, 100, 2), Group(2, 129, 4, 1)) and str(key) == KEY


@pytest.mark.parametrize(
    "text", ["", KEY[5:], KEY.replace("f16", "f8"), KEY.replace("-g6.3201.100.2-g2.129.4.1", "")]
)
def test_what_is_no_key_is_refused(text):
    with pytest.raises(ValueError, match="names no step; wanted"):
        steps.parse(text)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (dict(capability=75), "compute capability 7.5 is below 8.0"),
        (dict(width=16384), "a row of more than 8192 numbers"),
        (dict(count=2048), "2048 tokens to choose from"),
        (dict(key=512), "heads wider than 256"),
    ],
)
def test_why_a_step_is_not_served(change, reason):
    key = steps.parse(KEY)
    assert steps.reason_against(key) is None
    assert reason in steps.reason_against(StepKey(**{**vars(key), **change}))
