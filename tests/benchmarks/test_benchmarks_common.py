"""The benchmarks' truth is the tests' oracle, some rows at a time; their median is one; their processes take turns."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import oracle
import pytest

ROOT = Path(__file__).parents[2]
COMMON = ROOT / "benchmarks" / "common"


def test_the_truth_is_the_oracle():
    truth = runpy.run_path(str(COMMON / "truth.py"))
    truth["attention"].__globals__["_ELEMENTS"] = 5 * 24  # five rows at a time, the last four alone
    random = np.random.default_rng(0)
    q, k, v, dout = random.standard_normal((4, 24, 8))
    dlse = random.standard_normal(24)

    def sees(query, key):
        return (key <= query) & (query - key < 7)

    got = truth["attention"](np, sees, np.arange(24), q, k, v, dout, dlse)
    visible = sees(np.arange(24)[:, None], np.arange(24))[None]
    want = oracle.attention(q[None], k[None], v[None], visible, 8**-0.5, dout[None], dlse[None, None])
    for name, result in zip(("out", "lse", "dq", "dk", "dv"), want, strict=True):
        np.testing.assert_allclose(got[name], result.reshape(got[name].shape), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(got["delta"], (got["out"] * dout).sum(1) - dlse, rtol=1e-12, atol=1e-12)

    error = truth["relative_error"]
    assert error(np, {"out": got["out"] * 1.01, "dq": got["dq"]}, got) == pytest.approx(0.01)
    assert error(np, {"dv": np.full_like(v, np.nan)}, got) == np.inf


def test_the_median_of_times():
    timing = runpy.run_path(str(COMMON / "timing.py"))
    assert timing["median"]([9.0, 1.0, 2.0]) == 2.0 and timing["median"]([1.0, 2.0, 4.0, 9.0]) == 3.0
    runs = []
    times = timing["wall"](lambda: runs.append(None), 4, warm_up=2)
    assert len(runs) == 6 and len(times) == 4 and min(times) >= 0


PROCESS = """
import sys, time
from pathlib import Path
from benchmarks.common.processes import alone
log, name, ready, status = Path(sys.argv[1]), *sys.argv[2:]
def say(what):
    with log.open("a") as file:
        file.write(f"{name} {what}\\n")
time.sleep(float(ready))
say("ready")
if status != "0":
    sys.exit(int(status))
with alone():
    say("begins")
    time.sleep(0.2)
    say("ends")
"""


IN_TURNS = """
import json, sys
from benchmarks.common.processes import in_turns
in_turns(json.loads(sys.argv[1]), 60, {})
"""


def test_processes_have_the_device_in_their_order_once_all_are_ready(tmp_path):
    script, log = tmp_path / "process.py", tmp_path / "log"
    script.write_text(PROCESS)
    wanted = {"slow": ("1.0", "0"), "quick": ("0", "0"), "fails": ("0.5", "3"), "last": ("0.1", "0")}
    commands = json.dumps({name: [str(script), str(log), name, *each] for name, each in wanted.items()})
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    whole = [sys.executable, "-c", IN_TURNS, commands]
    done = subprocess.run(whole, env=environment, check=True, capture_output=True, text=True)
    said = log.read_text().splitlines()
    assert sorted(said[:4]) == sorted(f"{name} ready" for name in wanted)
    assert said[4:] == [f"{name} {what}" for name in ("slow", "quick", "last") for what in ("begins", "ends")]
    assert "fails: status 3" in done.stderr
