"""A training step of the full-size models on one GPU: Table 2's speed side, the longest context, the audio models.

    python benchmarks/model_step.py table --out benchmarks/model_step.json     # dense, fixed, strided
    python benchmarks/model_step.py longest                   # longest context of the 152M model on this card
    python benchmarks/model_step.py audio                     # one step at 65,536, 262,144 and 1,048,576 positions
    python benchmarks/model_step.py one enwik8 4 30           # one measurement: configuration, batch, rows of its grid

Float16 with recomputation as in the configurations. Each measurement is a process of its own, which may run out of
memory; batches double until one does. Ratios are of times for one sequence, each at its largest batch that fits.
Median of the steps after the first, which compiles.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

TABLE = {
    "enwik8": ("enwik8_dense", "enwik8", "enwik8_strided"),
    "cifar10": ("cifar10_dense", "cifar10_fixed", "cifar10"),
}
PAPER = {
    "enwik8": 2.38,
    "enwik8_strided": 3.74,
    "cifar10_fixed": 1.15,
    "cifar10": 1.42,
}  # dense time over sparse
AUDIO = ("music_65536", "music_262144", "music_1048576")


def measure(name: str, batch: int, rows: int | None, steps: int) -> dict:
    """Trains on random bytes in this process."""
    import config
    import numpy as np
    import tensorflow as tf
    from trainer import Trainer

    settings = replace(config.load(name), batch=batch)
    if rows:
        settings = replace(settings, grid=(rows, *settings.grid[1:]))
    trainer = Trainer(settings, tf.distribute.get_strategy())
    tokens = tf.constant(np.random.default_rng(0).integers(0, 256, (batch, settings.n_ctx)), tf.int32)
    times = []
    for step in range(steps + 1):
        began = time.perf_counter()
        bits, _ = trainer.step(tokens, tf.constant(step, tf.int64))
        if not np.isfinite(float(bits)):  # float() waits for the device
            sys.exit(f"the loss of step {step} is {float(bits)}; nothing is reported")
        times.append(time.perf_counter() - began)
    gpu = tf.config.list_physical_devices("GPU")
    return {
        "config": name,
        "batch": batch,
        "positions": settings.n_ctx,
        "parameters": trainer.model.count_params(),
        "seconds": round(float(np.median(times[1:])), 4),
        "seconds_first": round(times[0], 1),
        "peak_gb": round(tf.config.experimental.get_memory_info("GPU:0")["peak"] / 1e9, 2) if gpu else None,
        "device": tf.config.experimental.get_device_details(gpu[0]).get("device_name") if gpu else "CPU",
        "tensorflow": tf.__version__,
    }


def attempt(name: str, batch: int, rows: int = 0, steps: int = 5) -> dict | None:
    """One measurement in a process of its own; None where it fails, as for want of memory."""
    command = [sys.executable, __file__, "one", name, str(batch), str(rows), "--steps", str(steps)]
    child = subprocess.run(command, capture_output=True, text=True)
    if child.returncode:
        reason = (
            "out of memory" if "ResourceExhausted" in child.stderr else child.stderr.strip().splitlines()[-1:]
        )
        print(f"{name}, batch {batch}, rows {rows or 'all'}: {reason}", file=sys.stderr, flush=True)
        return None
    record = json.loads(child.stdout.splitlines()[-1])
    print(
        f"{name}, batch {batch}: {record['seconds']} s, {record['peak_gb']} GB", file=sys.stderr, flush=True
    )
    return record


def largest(name: str, start: int) -> dict:
    best, batch = None, start
    while record := attempt(name, batch):
        best, batch = record, 2 * batch
    if best is None:
        sys.exit(f"model_step.py: {name} does not run with batch {start}")
    return best


def table(start: int) -> list[dict]:
    records = []
    for names in TABLE.values():
        rows = [largest(name, start) for name in names]
        dense = rows[0]["seconds"] / rows[0]["batch"]
        for row in rows:
            row["ratio"] = round(dense / (row["seconds"] / row["batch"]), 2)
            row["paper"] = PAPER.get(row["config"])
        records += rows
    return records


def longest() -> list[dict]:
    """Rows of 256 positions, doubled as long as one sequence trains."""
    records, rows = [], 256
    while record := attempt("music_65536", 1, rows, steps=2):
        records.append(record)
        rows *= 2
    return records


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("table", "longest", "audio", "one"))
    parser.add_argument("case", nargs="*", help="for `one`: CONFIG BATCH [ROWS]")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--start", type=int, default=1, help="smallest batch to try")
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args()
    if args.what == "one":
        name, batch, *rows = args.case
        print(json.dumps(measure(name, int(batch), int(rows[0]) if rows else None, args.steps)))
        return
    if args.what == "audio":
        records = [record for name in AUDIO if (record := attempt(name, 1, steps=2))]
    else:
        records = table(args.start) if args.what == "table" else longest()
    print(json.dumps(records, indent=1))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
