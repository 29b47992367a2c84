"""The kernels in CUDA C++ compile for compute capability 7.0 and 7.5: registers, spills, shared memory, HMMA."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from blocksparse.gpu import cuda
from blocksparse.gpu.cuda import nvrtc
from blocksparse.gpu.key import parse

SCRIPT = Path(__file__).with_name("compile_cases.py")
FILE = 65536  # registers of a multiprocessor
# Bytes a thread. 7.0's warps have 32 rows: the key gradient's two results of 64 columns take 128 registers there.
SPILLED = {70: 56, 75: 0}
pytestmark = pytest.mark.skipif(nvrtc.path() is None, reason="NVRTC 12 is not installed")


@pytest.fixture(scope="module")
def kernels():
    """One record a kernel, with its key parsed."""
    done = subprocess.run([sys.executable, str(SCRIPT), "--cuda"], capture_output=True, text=True)
    assert done.stdout, done.stderr[-4000:]
    return [line | dict(key=parse(line["key"])) for line in map(json.loads, done.stdout.splitlines())]


def test_all_compile(kernels):
    assert len(kernels) >= 85
    assert not [kernel for kernel in kernels if "error" in kernel]


def test_little_spills(kernels):
    for kernel in kernels:
        assert kernel["local"] <= SPILLED[kernel["key"].capability], kernel


def test_a_block_fits(kernels):
    for kernel in kernels:
        assert kernel["shared"] <= cuda.SHARED[75], kernel
        assert kernel["registers"] * kernel["threads"] <= FILE, kernel


def test_float16_runs_on_tensor_cores_and_nothing_else_does(kernels):
    for kernel in kernels:
        multiplies = "cut" not in kernel["function"]
        assert (kernel["tensor"] > 0) == (kernel["key"].dtype == "f16" and multiplies), kernel


def test_the_v100_is_kept_busy(kernels):
    """Forward at head_dim 64: nothing spilled, two blocks a multiprocessor, a good part of the loop on tensor cores."""
    chosen = [
        kernel
        for kernel in kernels
        if kernel["function"] == "attention_forward"
        and (kernel["key"].capability, kernel["key"].dtype) == (70, "f16")
        and kernel["key"].head_dim == kernel["key"].value_dim == 64
    ]
    assert len(chosen) >= 2
    for kernel in chosen:
        assert kernel["local"] == 0 and kernel["share"] >= 0.35, kernel
        assert 2 * kernel["registers"] * kernel["threads"] <= FILE, kernel
        assert 2 * kernel["shared"] <= cuda.SHARED[70], kernel
