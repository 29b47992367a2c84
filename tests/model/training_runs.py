"""Starts the commands of examples/ on a model small enough to wait for."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

EXAMPLES = Path(__file__).parents[2] / "examples"
STEPS = 8
TINY = [
    "grid=(4, 16)", "layers=2", "width=32", "heads=2", "local_attn_ctx=16", "num_verts=2", "recompute=whole",
    "batch=4", "warmup=4", "dropout=0.2", "average=0.9", "clip=0.05", "checkpoint_every=2",
]  # fmt: skip


def train_command(out, steps, *overrides):
    flags = [word for override in (*TINY, *overrides) for word in ("--override", override)]
    return [str(EXAMPLES / "train.py"), "enwik8_small", "--steps", str(steps), "--out", str(out), *flags]


def start(command, *prefix, env=(), **kwargs):
    return subprocess.Popen(
        [sys.executable, *prefix, *command],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **dict(env)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **kwargs,
    )


def finish(process, timeout=300):
    """(status, output)."""
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"still running after {timeout} s: {process.communicate()[0]}") from None
    return process.returncode, output


def run(command, *prefix, **kwargs):
    status, output = finish(start(command, *prefix, **kwargs))
    assert status == 0, output
    return output


def metrics(out):
    with (out / "metrics.csv").open() as file:
        return [(row["step"], row["bits"], row["gradient_norm"]) for row in csv.DictReader(file)]


def arrays(out):
    with np.load(out / "checkpoint.npz") as file:
        return dict(file)
