"""Training steps on 1, 2, 4 and 8 GPUs of one machine, as many as there are; and workers that die or come late.

    python benchmarks/model/scaling.py steps --out benchmarks/results/model_scaling.json
    python benchmarks/model/scaling.py faults --out benchmarks/results/model_scaling.json
    python benchmarks/model/scaling.py report --out benchmarks/results/model_scaling.json
    python benchmarks/model/scaling.py steps --cpus 2 --override layers=1 --override precision=float32   # to try it

enwik8 and cifar10 whole, on random bytes: MirroredStrategy, one process for all GPUs, and MultiWorkerMirroredStrategy,
one for each. Weak scaling has the same batch a GPU, strong scaling the same batch in all. The rows of a model build
and compile beside each other, then take turns. Collectives: a step's gradients summed once more, with nothing beside.
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
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.common import examples, machine, timing

PER_GPU = {"enwik8": 8, "cifar10": 16}  # sequences of weak scaling; strong scaling has twice as many in all
WARM = 2  # steps before the timed ones
FEW = ["layers=1", "steps=100000", "checkpoint_every=2"]  # of the model whose workers die or come late


@dataclass(frozen=True)
class Row:
    model: str
    way: str  # "one", "mirrored" or "workers"
    gpus: int
    batch: int  # of all GPUs together

    def visible(self, cpus: int) -> list[str]:
        """CUDA_VISIBLE_DEVICES of each of its processes."""
        numbers = [] if cpus else list(map(str, range(self.gpus)))
        return (numbers or [""] * self.gpus) if self.way == "workers" else [",".join(numbers)]


def rows(model: str, counts: list[int]) -> list[Row]:
    """Weak and strong scaling of a model, one GPU first."""
    each = PER_GPU[model]
    return [
        Row(model, way, count, batch)
        for count in counts
        for way in (("mirrored", "workers") if count > 1 else ("one",))
        for batch in sorted({each * count, 2 * each})
    ]


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("localhost", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def start(
    command: list, visible: list[str], folder: Path, patience: float, late: float = 0
) -> list[subprocess.Popen]:
    """A worker for each entry of `visible`, the GPUs that it sees; the last of them `late` seconds after the others."""
    addresses = [f"localhost:{port}" for port in free_ports(len(visible))]
    children = []
    for index, gpus in enumerate(visible):
        env = {
            "CUDA_VISIBLE_DEVICES": gpus,
            "TF_FORCE_GPU_ALLOW_GROWTH": "true",
            "WORKER_TIMEOUT": str(patience),
        }
        if len(visible) > 1:
            cluster = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            env["TF_CONFIG"] = json.dumps(cluster)
        if index and index == len(visible) - 1:
            time.sleep(late)
        with folder.with_name(f"{folder.name}_{index}.log").open("w") as out:
            words = [sys.executable, *map(str, command)]
            children.append(subprocess.Popen(words, env={**os.environ, **env}, stdout=out, stderr=out))
    return children


def log(folder: Path) -> str:
    """What the first process of `folder` said last."""
    return (
        folder.with_name(f"{folder.name}_0.log").read_text().strip()[-800:].replace(str(folder), folder.name)
    )


class Noise:
    """Random bytes where a training wants data."""

    size = 2**20

    def __init__(self, n_ctx: int):
        self.n_ctx = n_ctx

    def examples(self, index: np.ndarray, shift: int) -> np.ndarray:
        return np.stack([np.random.default_rng(i).integers(0, 256, self.n_ctx) for i in index])


def devices(cluster, cpus: int):
    """The strategy; on CPUs, with so many devices made of one."""
    import tensorflow as tf
    from sparse_transformer.trainer import make_strategy

    if cluster or not cpus:
        return make_strategy(cluster)
    physical = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(physical, [tf.config.LogicalDeviceConfiguration()] * cpus)
    return (
        tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(cpus)])
        if cpus > 1
        else tf.distribute.get_strategy()
    )


def work(folder: Path, args) -> None:
    """One process of a row: `ready` after its first steps, waits for `go`; the first of them writes `result`."""
    from sparse_transformer import cluster
    from sparse_transformer.watchdog import Watchdog

    job = cluster.from_environment()
    watchdog = Watchdog(job)
    watchdog.gather()  # before TensorFlow connects the workers, which nothing interrupts
    import tensorflow as tf
    from sparse_transformer import batches, config
    from sparse_transformer.trainer import Trainer

    began, measurer = time.perf_counter(), os.getppid()
    settings = config.load(args.models[0]).override([*args.override, f"batch={args.batch}"])
    strategy = devices(job, args.cpus)
    trainer = Trainer(settings, strategy)
    drawn = iter(
        strategy.distribute_datasets_from_function(
            lambda context: batches.pipeline(Noise(settings.n_ctx), settings, 0, context)
        )
    )
    steps = []
    for step in range(WARM + args.steps):
        if step == WARM:
            built = time.perf_counter() - began
            (folder / f"ready{watchdog.own}").touch()
            while not (folder / "go").exists():
                if os.getppid() != measurer:
                    os._exit(1)  # it was killed: nobody will say go
                time.sleep(0.01)
        watchdog.entered(step + 1)
        start = time.perf_counter()
        bits, norm = map(float, trainer.step(next(drawn), tf.constant(step, tf.int64)))
        steps.append({"bits": bits, "norm": norm, "seconds": time.perf_counter() - start})
    found = {name: [step[name] for step in steps] for name in ("bits", "norm")}
    found |= {
        "seconds": timing.median([step["seconds"] for step in steps[WARM:]]),
        "collective_seconds": collectives(trainer, args.steps),
        "gradient_bytes": 4 * sum(v.shape.num_elements() for v in trainer.replicas[0].weights),
        "first_seconds": round(built, 1),
        **machine.record(),
    }
    if watchdog.own == 0:
        (folder / "result").write_text(json.dumps(found))
    else:
        watchdog.follow()
    watchdog.close()
    os._exit(
        0
    )  # the thread that reads ahead may be inside Python, where an interpreter that ends waits for it for ever


def collectives(trainer, repeats: int) -> float:
    """Seconds that the sum of a step's gradients takes alone, here of the weights; 0 where there is one device."""
    import tensorflow as tf

    strategy = trainer.strategy
    if strategy.num_replicas_in_sync == 1:
        return 0.0

    def add():
        context = tf.distribute.get_replica_context()
        index = tf.get_static_value(context.replica_id_in_sync_group) % len(trainer.replicas)
        weights = [variable.value for variable in trainer.replicas[index].weights]
        return context.all_reduce(tf.distribute.ReduceOp.SUM, [tf.identity(each) for each in weights])

    step = tf.function(lambda: strategy.experimental_local_results(strategy.run(add)[1])[0][0])

    def run() -> float:
        began = time.perf_counter()
        float(step())
        return time.perf_counter() - began

    return timing.median([run() for _ in range(WARM + repeats)][WARM:])


def measure(model: str, counts: list[int], args) -> list[dict]:
    """The records of a model's rows."""
    common = ["worker", "--models", model, "--steps", args.steps, "--cpus"]
    words = [word for override in args.override for word in ("--override", override)]
    until, records = time.monotonic() + args.timeout, []
    with tempfile.TemporaryDirectory() as parent:
        running: dict[Row, tuple[Path, list[subprocess.Popen]]] = {}
        for number, row in enumerate(rows(model, counts)):
            folder = Path(parent) / f"row{number}"
            folder.mkdir()
            cpus = args.cpus and (row.gpus if row.way == "mirrored" else 1)
            command = [__file__, *common, cpus, "--batch", row.batch, "--folder", folder, *words]
            running[row] = folder, start(command, row.visible(args.cpus), folder, 60)
        for folder, children in running.values():
            while (
                len(list(folder.glob("ready*"))) < len(children)
                and time.monotonic() < until
                and not any(child.poll() for child in children)
            ):
                time.sleep(0.1)
        for row, (folder, children) in running.items():
            records.append({**asdict(row), **result(row, folder, children)})
            for child in children:
                child.kill()
    return records


def result(row: Row, folder: Path, children: list[subprocess.Popen]) -> dict:
    (folder / "go").touch()
    try:
        status = [child.wait(timeout=120) for child in children]
    except subprocess.TimeoutExpired:
        status = ["too slow"]
    path = folder / "result"
    if not path.exists():
        print(f"{row}: status {status}\n{log(folder)}", file=sys.stderr, flush=True)
    return {"status": status, **(json.loads(path.read_text()) if path.exists() else {})}


def fault(name: str, folder: Path, args, late: float = 0) -> dict:
    """What worker 0 of two says and how it ends: when the other is killed, or when it is `late` seconds late."""
    command = [examples.FOLDER / "train.py", args.models[0], "--out", folder]
    for override in (*FEW, *args.override):
        command += ["--override", override]
    children = start(command, Row("", "workers", 2, 2).visible(args.cpus), folder, args.patience, late)
    until = time.monotonic() + args.timeout
    while not (folder / "checkpoint.npz").exists() and not children[0].poll() and time.monotonic() < until:
        time.sleep(0.1)
    trained = (folder / "checkpoint.npz").exists()
    children[1].send_signal(signal.SIGTERM if late else signal.SIGKILL)
    began = time.monotonic()
    try:
        status = children[0].wait(timeout=args.patience + 30)
    except subprocess.TimeoutExpired:
        status = "still running"
    seconds = round(time.monotonic() - began, 1)
    for child in children:
        child.kill()
    return {
        "fault": name,
        "on": "CPU" if args.cpus else machine.card(),
        "patience": args.patience,
        "trained": trained,  # to a checkpoint, before the signal
        "status": status,
        "seconds": seconds,  # from the signal to its end
        "says": log(folder).splitlines()[-1],
    }


def report(records: list[dict]) -> str:
    """A Markdown table: how many times one GPU's rate, at its batch a GPU (weak) and at its batch (strong)."""
    alone = {(r["model"], r["batch"]): r for r in records if r.get("way") == "one" and "seconds" in r}
    lines = [
        "| model | way | GPUs | sequences | s a step | weak | strong | collectives alone, ms | bits differ by |",
        "| --- " * 9 + "|",
    ]
    for r in (r for r in records if "seconds" in r and "model" in r):
        weak = alone.get((r["model"], r["batch"] // r["gpus"]))
        strong = alone.get((r["model"], r["batch"]))
        differ = np.abs(np.subtract(r["bits"], strong["bits"])).max() if strong else np.nan
        lines.append(
            f"| `{r['model']}` | {r['way']} | {r['gpus']} | {r['batch']} | {r['seconds']:.4f} "
            f"| {weak['seconds'] / r['seconds'] * r['gpus'] if weak else np.nan:.3f} "
            f"| {strong['seconds'] / r['seconds'] if strong else np.nan:.3f} "
            f"| {1e3 * r['collective_seconds']:.2f} | {differ:.1e} |"
        )
    lines += [json.dumps(r) for r in records if "fault" in r]
    return "\n".join(lines).replace("nan", "")


def available(cpus: int) -> list[int]:
    """1, 2, 4, 8 as far as there are GPUs, or `cpus`."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        listed = ""
    found = cpus or sum(line.startswith("GPU") for line in listed.splitlines())
    if not found:
        sys.exit("there is no GPU; --cpus N tries the script on N CPU devices")
    return [count for count in (1, 2, 4, 8) if count <= found]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("steps", "faults", "report", "worker"))
    parser.add_argument("--models", nargs="+", default=list(PER_GPU), choices=PER_GPU)
    parser.add_argument("--steps", type=int, default=10, help="timed ones")
    parser.add_argument("--cpus", type=int, default=0, help="so many CPU devices in place of GPUs")
    parser.add_argument("--override", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--timeout", type=int, default=600, help="seconds until all have done two steps")
    parser.add_argument("--patience", type=float, default=20, help="WORKER_TIMEOUT of a fault's partner")
    parser.add_argument("--late", type=float, default=90, help="seconds that a late worker is late")
    parser.add_argument("--out", type=Path, default=Path("model_scaling.json"))
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.what == "worker":
        work(args.folder, args)
        return
    known = json.loads(args.out.read_text()) if args.out.exists() else {"rows": []}
    records = known["rows"]
    if args.what == "steps":
        known = {"machine": machine.card_and_versions()}  # what was said of older rows goes with them
        counts = available(args.cpus)
        for model in args.models:
            records = [r for r in records if r.get("model") != model] + measure(model, counts, args)
    elif args.what == "faults":
        records = [r for r in records if "fault" not in r]
        with tempfile.TemporaryDirectory() as folder:
            records.append(fault("killed", Path(folder) / "killed", args))
            args.patience += args.late
            records.append(fault(f"late by {args.late:.0f} s", Path(folder) / "late", args, args.late))
    if args.what != "report":
        args.out.write_text(json.dumps({**known, "rows": records}, indent=1) + "\n")
    print(report(records))


if __name__ == "__main__":
    main()
