"""Trainings that are ended at random moments, resumes included: no row and no file is lost, and the bits stay.

    python tests/model/kill_runs.py REFERENCE FOLDER KILLS [SEED]

REFERENCE is a run of the same command that nothing disturbed. Beside KILLS by SIGKILL there are half as many ends by
SIGTERM and Ctrl-C, but one of each at least. TensorFlow is imported once: each training is a fork. Prints the counts
as JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
import traceback
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
    said = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(said, 1)
    os.dup2(said, 2)
    status = 1
    try:
        sys.argv = train_command(folder, STEPS)
        train.main()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
        if not isinstance(error.code, int):
            print(error)  # as Python does: a number is the status alone
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
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


def end(child: int, folder: Path, how: signal.Signals, before: int) -> int:
    """Ends the training, and returns the steps done once everything was checked."""
    os.kill(child, how)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    done = check(folder, before)
    if how != signal.SIGKILL and status:  # else it was through already
        said = folder.with_suffix(".log").read_text()
        assert status == 128 + how, said
        name = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}[how]
        line = said.strip().splitlines()[-1]
        assert line.startswith(f"train.py: stopped by {name} "), said
        if "after step" in line:
            assert line.startswith(f"train.py: stopped by {name} after step {done};"), said
    return done


def main(reference: Path, folder: Path, kills: int, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    ways = [signal.SIGKILL] * kills + [signal.SIGTERM, signal.SIGINT] * max(1, kills // 4)
    ways = [ways[i] for i in rng.permutation(len(ways))]
    counts = {"kills": 0, "signals": 0, "before the first checkpoint": 0, "later": 0, "completed runs": 0}
    done, length = 0, 0.0
    while True:
        began = time.monotonic()
        child = begin(folder)
        # The first training is left alone, and tells how long one takes.
        wait = rng.uniform(0.2, 1.1 * length) if length and ways else np.inf
        while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() - began < wait:
            time.sleep(0.002)
        if ended[0] == 0:
            how = ways.pop()
            done = end(child, folder, how, done)
            counts["kills" if how == signal.SIGKILL else "signals"] += 1
            counts["later" if done else "before the first checkpoint"] += 1
            continue
        assert ended[1] == 0, folder.with_suffix(".log").read_text()
        length = length or time.monotonic() - began
        same(folder, reference)
        counts["completed runs"] += 1
        if not ways:
            return counts
        shutil.rmtree(folder)
        done = 0


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))))
