"""Trainings that are killed at random moments, resumes included: no row and no file is lost, and the bits stay.

    python tests/model/kill_runs.py REFERENCE FOLDER KILLS [SEED]

REFERENCE is a run of the same command that nothing disturbed. TensorFlow is imported once: each training is a fork.
Prints how many kills came before, between and after checkpoints, as JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import train
from sparse_transformer import checkpoint, metrics, origin, runs, training  # noqa: F401
from training_runs import STEPS, train_command


def begin(folder: Path) -> int:
    """A training in a fork of this process: its process number."""
    child = os.fork()
    if child:
        return child
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    status = 1
    try:
        sys.argv = train_command(folder, STEPS)
        train.main()
        status = 0
    finally:
        os._exit(status)


def check(folder: Path, before: int) -> int:
    """Everything can be read, and nothing of the steps done before is missing; the steps done now."""
    if not (folder / "config.json").exists():
        assert before == 0
        return 0
    runs.read_config(folder)
    done = checkpoint.steps_done(folder)
    assert done >= before, f"the checkpoint went back from step {before} to {done}"
    if done:
        assert origin.read(folder) is not None
    rows = [int(row[0]) for row in metrics.read_rows(folder / metrics.NAME)]
    assert rows[:done] == list(range(done)), f"step {done} is done, and the rows are {rows}"
    return done


def same(folder: Path, reference: Path) -> None:
    """The run is the reference, to the bit; time apart."""
    for one, other in zip(
        *(metrics.read_rows(each / metrics.NAME) for each in (folder, reference)), strict=True
    ):
        assert one[:3] + one[4:] == other[:3] + other[4:], (one, other)
    arrays, wanted = checkpoint.read(folder), checkpoint.read(reference)
    assert arrays.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)


def main(reference: Path, folder: Path, kills: int, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    counts = {"kills": 0, "before the first checkpoint": 0, "later": 0, "completed runs": 0}
    done, length = 0, 0.0
    while True:
        began = time.monotonic()
        child = begin(folder)
        wait = rng.uniform(0.2, 1.1 * length) if length and counts["kills"] < kills else np.inf
        while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() - began < wait:
            time.sleep(0.002)
        if ended[0] == 0:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            counts["kills"] += 1
            done = check(folder, done)
            counts["later" if done else "before the first checkpoint"] += 1
            continue
        assert ended[1] == 0, f"a training ended with {ended[1]}"
        length = (
            length or time.monotonic() - began
        )  # the first one is not killed, and tells how long one takes
        same(folder, reference)
        counts["completed runs"] += 1
        if counts["kills"] >= kills:
            return counts
        shutil.rmtree(folder)
        done = 0


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))))
