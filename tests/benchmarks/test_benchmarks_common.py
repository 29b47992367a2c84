"""The benchmarks' truth is the tests' oracle, some rows at a time; their median is one."""

import runpy
from pathlib import Path

import numpy as np
import oracle
import pytest

COMMON = Path(__file__).parents[2] / "benchmarks" / "common"


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
