"""On a GPU, under op determinism, a killed run goes on to the bit."""

import os
import time

import numpy as np
import pytest
from training_runs import arrays, finish, metrics, run, start, train_command

pytestmark = pytest.mark.gpu

LENGTH = 40
ON_GPU = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0")}
OVERRIDES = ("precision=mixed_float16", "grid=(32, 32)", "local_attn_ctx=32", "width=128")


@pytest.mark.parametrize("xla", [False, True])
def test_a_killed_run_is_the_same_to_the_bit(xla, tmp_path):
    def command(out):
        return [*train_command(out, LENGTH, *OVERRIDES, f"xla={xla}"), "--deterministic"]

    unbroken = start(command(tmp_path / "unbroken"), env=ON_GPU)
    killed = start(command(tmp_path / "killed"), env=ON_GPU)
    checkpoint = tmp_path / "killed" / "checkpoint.npz"
    while not checkpoint.exists() and killed.poll() is None:
        time.sleep(0.01)
    killed.kill()
    _, output = finish(killed)
    assert checkpoint.exists(), output
    assert int(arrays(checkpoint.parent)["step"]) < LENGTH
    run(command(checkpoint.parent), env=ON_GPU)
    status, output = finish(unbroken)
    assert status == 0, output
    assert metrics(tmp_path / "unbroken") == metrics(tmp_path / "killed")
    whole, resumed = arrays(tmp_path / "unbroken"), arrays(tmp_path / "killed")
    for name in whole:
        np.testing.assert_array_equal(whole[name], resumed[name], err_msg=name)
