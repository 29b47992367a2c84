"""Two GPUs of one machine against one: the same training steps, and what examples/train.py does when a worker dies.

    python benchmarks/model/scaling.py --out benchmarks/results/model_scaling.json

enwik8 with 8 of its 30 layers and 16 windows a step: one GPU; MirroredStrategy in one process; two worker processes of
a GPU each under MultiWorkerMirroredStrategy and NCCL. All three start together, wait after their second step, and take
the timed ones in turn. Meanwhile one of two workers is killed during training.
"""

from __future__ import annotations

import argparse
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

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.common import examples, timing

WAYS = {"one GPU": ["0"], "MirroredStrategy": ["0,1"], "MultiWorkerMirroredStrategy": ["0", "1"]}
WARM = 2  # steps before the timed ones


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("localhost", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def start(command: list, gpus: list[str], folder: Path, patience: float) -> list[subprocess.Popen]:
    """A worker for each entry of `gpus`, the GPUs that it sees."""
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
        with folder.with_name(f"{folder.name}{index}.log").open("w") as out:
            words = [sys.executable, *map(str, command)]
            children.append(subprocess.Popen(words, env={**os.environ, **env}, stdout=out, stderr=out))
    return children


def log(folder: Path) -> str:
    return folder.with_name(f"{folder.name}0.log").read_text()[-800:]


def work(folder: Path, args) -> None:
    """One worker's steps; the chief's folder gets `ready` after the first ones, waits for `go`, gets `result`."""
    from sparse_transformer import cluster
    from sparse_transformer.watchdog import Watchdog

    job = cluster.from_environment()
    watchdog = Watchdog(job)
    watchdog.gather()  # before TensorFlow connects the workers, which nothing interrupts
    import tensorflow as tf
    from sparse_transformer import batches, config, data
    from sparse_transformer.trainer import Trainer, make_strategy

    settings = config.load("enwik8").override(args.override)
    strategy = make_strategy(job)
    trainer = Trainer(settings, strategy)
    source = data.load(settings)
    drawn = iter(
        strategy.distribute_datasets_from_function(
            lambda context: batches.pipeline(source, settings, 0, context)
        )
    )
    rows = []
    for step in range(WARM + args.steps):
        if step == WARM:
            (folder / f"ready{watchdog.own}").touch()
            while not (folder / "go").exists():
                time.sleep(0.01)
        watchdog.entered(step + 1)
        began = time.perf_counter()
        bits, norm = map(float, trainer.step(next(drawn), tf.constant(step, tf.int64)))
        rows.append({"bits": bits, "gradient_norm": norm, "seconds": time.perf_counter() - began})
    if watchdog.own == 0:
        (folder / "result").write_text(json.dumps(rows))
    else:
        watchdog.follow()
    watchdog.close()


def result(way: str, folder: Path, children: list[subprocess.Popen]) -> dict:
    (folder / "go").touch()
    try:
        status = [child.wait(timeout=60) for child in children]
    except subprocess.TimeoutExpired:
        status = ["too slow"]
    path = folder / "result"
    rows = json.loads(path.read_text()) if path.exists() else []
    if not rows:
        print(f"{way}: status {status}\n{log(folder)}", file=sys.stderr, flush=True)
    return {
        "way": way,
        "status": status,
        "bits": [row["bits"] for row in rows],
        "gradient_norm": [row["gradient_norm"] for row in rows],
        "seconds": timing.median([row["seconds"] for row in rows[WARM:]]) if rows else None,
    }


def killed_worker(folder: Path, args) -> dict:
    """What the surviving worker says, and how long after the other's death it ends."""
    command = [examples.FOLDER / "train.py", "enwik8", "--steps", 100_000, "--out", folder]
    for override in (*args.override, "layers=1", "checkpoint_every=2"):
        command += ["--override", override]
    children = start(command, WAYS["MultiWorkerMirroredStrategy"], folder, args.patience)
    until = time.monotonic() + args.timeout
    while (
        not (folder / "checkpoint.npz").exists() and children[0].poll() is None and time.monotonic() < until
    ):
        time.sleep(0.1)
    children[1].send_signal(signal.SIGKILL)
    began = time.monotonic()
    try:
        status = children[0].wait(timeout=args.patience + 30)
    except subprocess.TimeoutExpired:
        status = "still running"
    seconds = round(time.monotonic() - began, 1)
    for child in children:
        child.kill()
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
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument(
        "--patience", type=float, default=20, help="WORKER_TIMEOUT of the killed worker's partner"
    )
    parser.add_argument("--override", action="append", default=["layers=8", "batch=16"], metavar="KEY=VALUE")
    parser.add_argument("--timeout", type=int, default=600, help="seconds until all have done two steps")
    parser.add_argument("--no-gpus", dest="gpus", action="store_false", help="on the CPU, to try the script")
    parser.add_argument("--worker", type=Path, help="one worker of one way")
    parser.add_argument("--out", type=Path, default=Path("model_scaling.json"))
    args = parser.parse_args()
    if args.worker:
        work(args.worker, args)
        return
    if not args.gpus:
        WAYS.update({"one GPU": [""], "MirroredStrategy": [""], "MultiWorkerMirroredStrategy": ["", ""]})
    words = [word for override in args.override for word in ("--override", override)]
    until = time.monotonic() + args.timeout
    with tempfile.TemporaryDirectory() as folder:
        running = {}
        for number, (way, gpus) in enumerate(WAYS.items()):
            own = Path(folder) / f"run{number}"
            own.mkdir()
            command = [__file__, "--worker", own, "--steps", args.steps, *words]
            running[way] = own, start(command, gpus, own, 60)
        records = [killed_worker(Path(folder) / "killed", args)]
        for own, children in running.values():
            while (
                len(list(own.glob("ready*"))) < len(children)
                and time.monotonic() < until
                and not any(child.poll() for child in children)
            ):
                time.sleep(0.1)
        for way, (own, children) in running.items():
            records.insert(-1, result(way, own, children))
            for child in children:
                child.kill()
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
