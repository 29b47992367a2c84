"""A training step of the full-size models on one GPU: Table 2's speed side, the audio models, the longest context.

    python benchmarks/model/step.py enwik8 cifar10 --out model_step.jsonl  # and PyTorch, if it is there
    python benchmarks/model/step.py audio --steps 1 --out model_step.jsonl
    python benchmarks/model/step.py longest --out model_step.jsonl
    python benchmarks/model/step.py one enwik8 8 16 --override recompute=none    # one configuration, several batches
    python benchmarks/model/step.py report --out model_step.jsonl

Float16, on random bytes, with selective recomputation and with none. Each row is a process of its own. Side by side
they build their graphs and compile, in a model of one layer of each kind, what all layers share; then each has the GPU
for itself, what holds most memory late, PyTorch's last. What does not fit is tried with a tenth less. Seconds: the
median of --steps steps after the first, which compiles the rest; of that one with --steps 0.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.common import examples  # noqa: F401  first

from benchmarks.common import machine, timing  # isort: skip
from benchmarks.common.processes import TENSORFLOWS, add, alone, in_turns, read  # isort: skip
from sparse_transformer import command  # isort: skip

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
command.choose_products(fast=True)  # as train.py does

GROUPS = {  # the first of a group is what the others are compared with
    "enwik8": ("enwik8_dense", "enwik8", "enwik8_strided"),
    "cifar10": ("cifar10_dense", "cifar10_fixed", "cifar10"),
    "audio": ("music_65536", "music_262144", "music_1048576"),
}
BATCHES = {"enwik8": 16, "cifar10": 32, "audio": 1}  # the fastest that an H200 has room for
MOST = {("enwik8_strided", "none"): 14, ("cifar10", "none"): 64}
PEERS = {"enwik8_dense": (16,), "enwik8": (8,), "cifar10_dense": (32,)}  # in PyTorch, and their batches
PAPER = {
    "enwik8": 2.38,
    "enwik8_strided": 3.74,
    "cifar10_fixed": 1.15,
    "cifar10": 1.42,
}  # dense time over sparse


class Steps:
    """The compiled training step of a configuration, for any batch."""

    def __init__(self, settings):
        import numpy as np
        import tensorflow as tf
        from sparse_transformer.trainer import Trainer

        self.settings, self.np, self.tf = settings, np, tf
        began = time.perf_counter()
        self.trainer = Trainer(settings, tf.distribute.get_strategy())
        self.step = self.trainer.step.get_concrete_function(
            tf.TensorSpec([None, settings.n_ctx], tf.int32), tf.TensorSpec([], tf.int64)
        )
        self.build_seconds = round(time.perf_counter() - began, 1)
        self.gpus = tf.config.list_physical_devices("GPU")

    def run(self, batch: int, steps: int) -> dict:
        """Seconds and peak memory of a step; raises tf.errors.ResourceExhaustedError."""
        np, tf = self.np, self.tf
        tokens = tf.constant(
            np.random.default_rng(0).integers(0, 256, (batch, self.settings.n_ctx)), tf.int32
        )
        if self.gpus:
            tf.config.experimental.reset_memory_stats("GPU:0")
        times = []
        for number in range(steps + 1):
            began = time.perf_counter()
            bits, _ = self.step(tokens, tf.constant(number, tf.int64))
            if not np.isfinite(float(bits)):  # float() waits for the device
                sys.exit(f"the loss of step {number} is {float(bits)}; nothing is reported")
            times.append(time.perf_counter() - began)
        return {
            "config": self.settings.name,
            "positions": self.settings.n_ctx,
            "parameters": self.trainer.model.count_params(),
            "batch": batch,
            "recompute": self.settings.recompute,
            "seconds": round(timing.median(times[1:] or times), 4),
            "seconds_first": round(times[0], 2),
            "build_seconds": self.build_seconds,
            "peak_gb": self.peak(),
            "deterministic": os.environ.get("TF_DETERMINISTIC_OPS") == "1",
            "xla": self.settings.xla,
            "xla_flags": os.environ["XLA_FLAGS"],
            **machine.record(),
        }

    def peak(self) -> float:
        """GB; on a CPU, which does not count, so much that the search can be tried there."""
        if not self.gpus:
            return 1 + self.settings.n_ctx / 1e3
        return round(self.tf.config.experimental.get_memory_info("GPU:0")["peak"] / 1e9, 3)

    def run_or_less(self, batch: int, steps: int) -> dict:
        while True:
            try:
                return self.run(batch, steps)
            except self.tf.errors.ResourceExhaustedError:
                print(f"{self.settings.name}: batch {batch} does not fit", file=sys.stderr, flush=True)
                if batch == 1:
                    raise
            batch = batch * 9 // 10


def ready(settings, batch: int) -> None:
    """Compiles what the layers of a model share."""
    kinds = len(settings.layer_modes)
    if settings.layers > kinds:
        Steps(settings.override([f"layers={kinds}"])).run(batch, 0)


def one(name: str, batches: list[int], args) -> None:
    import tensorflow as tf
    from sparse_transformer import config

    settings = replace(config.load(name), batch=1).override(args.override)
    tf.config.list_logical_devices(
        "GPU"
    )  # TensorFlow's share is bounded by what others have left when it looks first
    for batch in batches:
        ready(settings, batch)
    steps = Steps(settings)
    try:
        with alone():
            for batch in batches:
                add(args.out, steps.run_or_less(batch, args.steps))
    except tf.errors.ResourceExhaustedError:
        sys.exit(f"{settings.name}, {settings.n_ctx} positions, batch 1: out of memory")


def cases(wanted: list[tuple], args, peers: tuple[str, ...] = ()) -> None:
    """Measures (configuration, batch, overrides), and PyTorch's steps of the models in `peers`."""
    common = ["--steps", args.steps, "--out", args.out]
    torch = importlib.util.find_spec("torch") is not None
    script, commands = Path(__file__).with_name("pytorch.py"), {}
    for name, batch, overrides in wanted:
        words = [word for override in (*args.override, *overrides) for word in ("--override", override)]
        commands[" ".join([name, *overrides])] = [__file__, "one", name, batch, *common, *words]
    theirs = {f"pytorch {n}": [script, "step", n, *PEERS[n], *common] for n in peers if torch}
    in_turns(commands | theirs, args.timeout, dict.fromkeys(theirs, TENSORFLOWS))


def longest(args) -> None:
    """The 152M model's peaks at two lengths say which third one fits; a twentieth less is tried until one does."""
    until = time.monotonic() + args.timeout

    def peaks(*rows: int) -> dict[int, float]:
        known = {r["positions"] // 256: r["peak_gb"] for r in read(args.out) if r["config"] == "music_65536"}
        cases([("music_65536", 1, [f"grid=({r}, 256)"]) for r in rows if r not in known], args)
        known = {r["positions"] // 256: r["peak_gb"] for r in read(args.out) if r["config"] == "music_65536"}
        return {r: known[r] for r in rows if r in known}

    found = peaks(64, 256)
    if len(found) < 2:
        return
    rows = 64 + (args.memory - found[64]) / (found[256] - found[64]) * (256 - 64)
    while not peaks(int(rows) // 32 * 32) and time.monotonic() < until:  # whole blocks of every residue
        rows *= 0.95


def report(records: list[dict]) -> str:
    """A Markdown table, for each way of running at its best batch.

    dense / this: of the milliseconds a sequence, with the same recomputation; PyTorch / this: of its dense model's,
    at its best.
    """
    best: dict = {}
    for r in records:
        key = r["config"], r["positions"], r.get("recompute", ""), "pytorch" in r
        if key not in best or r["seconds"] / r["batch"] < best[key]["seconds"] / best[key]["batch"]:
            best[key] = r
    lines = [
        "| configuration | positions | recompute | batch | ms a sequence | GB a sequence | dense / this | paper "
        "| PyTorch dense / this |",
        "| --- " * 9 + "|",
    ]
    for (name, positions, recompute, peer), r in sorted(best.items()):
        dense = next((group[0] for group in GROUPS.values() if name in group), None)
        ours = best.get((dense, positions, recompute, False))
        theirs = best.get((dense, positions, "none", True))
        cells = [_ratio(None if peer or name == dense else ours, r), PAPER.get(name, "") if not peer else ""]
        lines.append(
            f"| {'PyTorch, ' if peer else ''}{name} | {positions:,} | {recompute} | {r['batch']} "
            f"| {1e3 * r['seconds'] / r['batch']:.1f} | {r['peak_gb'] / r['batch']:.2f} "
            f"| {cells[0]} | {cells[1] if cells[0] else ''} | {_ratio(theirs, r)} |"
        )
    return "\n".join(lines)


def _ratio(other: dict | None, this: dict) -> str:
    if other is None or other is this:
        return ""
    return f"{other['seconds'] / other['batch'] / (this['seconds'] / this['batch']):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "what", nargs="+", help=f"{', '.join(GROUPS)}, longest, report; or `one` CONFIG BATCH ..."
    )
    parser.add_argument(
        "--out", type=Path, default=Path("model_step.jsonl"), help="gets a line a measurement"
    )
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--memory", type=float, default=78, help="GB for the longest context")
    parser.add_argument("--recompute", nargs="+", default=["selective", "none"], metavar="SETTING")
    parser.add_argument("--timeout", type=int, default=3600, help="seconds until what still runs is stopped")
    parser.add_argument("--override", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    if args.what[0] == "one":
        one(args.what[1], [int(batch) for batch in args.what[2:]], args)
        return
    if args.what == ["longest"]:
        longest(args)
    elif args.what != ["report"]:
        names = [(name, BATCHES[group]) for group in args.what for name in GROUPS[group]]
        wanted = [
            (name, MOST.get((name, each), batch), [f"recompute={each}"])
            for each in args.recompute
            for name, batch in names
        ]
        cases(wanted, args, tuple(name for name, _ in names if name in PEERS))
    print(report(read(args.out)))


if __name__ == "__main__":
    main()
