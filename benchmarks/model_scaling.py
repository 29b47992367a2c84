"""Two GPUs of one machine against one: examples/train.py on the same batch, and what it does when a worker dies.

    python benchmarks/model_scaling.py --out benchmarks/model_scaling.json

enwik8 with 8 of its 30 layers and 16 windows a step: one GPU; MirroredStrategy in one process; two worker processes of
a GPU each under MultiWorkerMirroredStrategy and NCCL. Then one of two workers is killed during training.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

TRAIN = Path(__file__).parents[1] / "examples" / "train.py"
WAYS = {"one GPU": ["0"], "MirroredStrategy": ["0,1"], "MultiWorkerMirroredStrategy": ["0", "1"]}


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("localhost", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def start(
    gpus: list[str], folder: Path, steps: int, overrides: list[str], patience: float
) -> list[subprocess.Popen]:
    """A worker for each entry of `gpus`, the GPUs that it sees."""
    words = [word for override in overrides for word in ("--override", override)]
    command = [sys.executable, str(TRAIN), "enwik8", "--steps", str(steps), "--out", str(folder), *words]
    workers = [f"localhost:{port}" for port in free_ports(len(gpus))]
    children = []
    for index, visible in enumerate(gpus):
        env = {
            "CUDA_VISIBLE_DEVICES": visible,
            "TF_FORCE_GPU_ALLOW_GROWTH": "true",
            "WORKER_TIMEOUT": str(patience),
        }
        if len(gpus) > 1:
            cluster = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
            env["TF_CONFIG"] = json.dumps(cluster)
        out = (folder.with_name(f"{folder.name}{index}.log")).open("w")
        children.append(subprocess.Popen(command, env={**os.environ, **env}, stdout=out, stderr=out))
    return children


def log(folder: Path, index: int = 0) -> str:
    return folder.with_name(f"{folder.name}{index}.log").read_text()[-800:]


def rows(folder: Path) -> list[dict]:
    path = folder / "metrics.csv"
    return list(csv.DictReader(path.open())) if path.exists() else []


def scaling(way: str, folder: Path, args) -> dict:
    children = start(WAYS[way], folder, args.steps, args.override, 60)
    try:
        status = [child.wait(timeout=args.timeout / 3) for child in children]
    except subprocess.TimeoutExpired:
        status = ["too slow"]
    finally:
        for child in children:
            child.kill()
    if any(status):
        print(f"{way}: status {status}\n{log(folder)}", file=sys.stderr, flush=True)
    done = rows(folder)
    return {
        "way": way,
        "status": status,
        "bits": [float(row["bits"]) for row in done],
        "gradient_norm": [float(row["gradient_norm"]) for row in done],
        "seconds": float(np.median([float(row["seconds"]) for row in done[3:]])) if done[3:] else None,
    }


def killed_worker(folder: Path, args) -> dict:
    """What the surviving worker says, and how long after the other's death it ends."""
    every = [*args.override, "layers=1", "checkpoint_every=2"]
    children = start(["0", "1"] if args.gpus else ["", ""], folder, 100_000, every, args.patience)
    until = time.monotonic() + args.timeout / 3
    while not (folder / "checkpoint.npz").exists() and time.monotonic() < until:
        time.sleep(0.1)
    children[1].send_signal(signal.SIGKILL)
    began = time.monotonic()
    try:
        status = children[0].wait(timeout=args.patience + 30)
    except subprocess.TimeoutExpired:
        status = "still running"
    seconds = round(time.monotonic() - began, 1)
    children[0].kill()
    return {
        "way": "killed worker",
        "status": status,
        "seconds": seconds,
        "patience": args.patience,
        "says": log(folder),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument(
        "--patience", type=float, default=20, help="WORKER_TIMEOUT of the killed worker's partner"
    )
    parser.add_argument("--override", action="append", default=["layers=8", "batch=16"], metavar="KEY=VALUE")
    parser.add_argument("--timeout", type=int, default=1200, help="seconds in all, about")
    parser.add_argument("--no-gpus", dest="gpus", action="store_false", help="on the CPU, to try the script")
    parser.add_argument("--out", type=Path, default=Path("model_scaling.json"))
    args = parser.parse_args()
    if not args.gpus:
        WAYS.update({"one GPU": [""], "MirroredStrategy": [""], "MultiWorkerMirroredStrategy": ["", ""]})
    records = []
    with tempfile.TemporaryDirectory() as folder:
        for number, way in enumerate(WAYS):
            records.append(scaling(way, Path(folder) / f"run{number}", args))
            args.out.write_text(json.dumps(records, indent=1) + "\n")
        records.append(killed_worker(Path(folder) / "killed", args))
    args.out.write_text(json.dumps(records, indent=1) + "\n")
    alone = records[0]["seconds"]
    print("| | s a step | times as fast | largest difference in bits |\n| --- | --- | --- | --- |")
    for record in records[:-1]:
        if record["seconds"] and alone:
            difference = np.abs(np.subtract(record["bits"], records[0]["bits"])).max()
            ratio = alone / record["seconds"]
            print(f"| {record['way']} | {record['seconds']:.3f} | {ratio:.2f} | {difference:.1e} |")
    print(json.dumps(records[-1]))


if __name__ == "__main__":
    main()
