"""Table 2's quality side in small: one model, data, number of steps, with dense, fixed and strided attention.

    python benchmarks/model/quality.py --out benchmarks/results/model_quality.json

Bits per byte on held-out text with averaged weights, several seeds each. Paper, full size: 1.00, 0.99 and 1.13. The
model is enwik8's at half the width and a fifth of the layers; the paper's 5,000 steps of warm-up become an eighth of
the run. --override makes it smaller still.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.common import examples  # noqa: F401  first

from benchmarks.common import machine, timing  # isort: skip
from benchmarks.common.processes import add, read, together  # isort: skip
from sparse_transformer import config  # isort: skip

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")

PATTERNS = {"dense": ("all",), "fixed": ("fixed",), "strided": ("local+strided",)}


def settings_of(args, name: str, seed: int) -> config.Config:
    base = replace(
        config.load("enwik8"),
        name=f"quality_{name}",
        grid=(32, 64),
        layers=6,
        width=256,
        heads=4,
        local_attn_ctx=64,
        blocksize=16,
        dropout=0.0,
        recompute="none",
        learning_rate=1e-3,
        average=0.99,
        batch=16,
        steps=args.steps,
        warmup=args.steps // 8,
    )
    return replace(base, layer_modes=PATTERNS[name], seed=seed).override(args.override)


def train(args, name: str) -> Iterator[dict]:
    """Of each seed the curve, its result and its seconds a step, all from one compiled step."""
    import keras
    import tensorflow as tf
    from sparse_transformer import batches, data, flat
    from sparse_transformer.evaluation import mean_bits, set_weights
    from sparse_transformer.model import SparseTransformer
    from sparse_transformer.trainer import Trainer

    settings = settings_of(args, name, 0)
    trainer = Trainer(settings, tf.distribute.get_strategy())
    start = {path: variable.numpy() for path, variable in trainer.variables.items()}
    source, held_out = data.load(settings), data.load(settings, split="valid")
    for seed in range(args.seeds):
        keras.utils.set_random_seed(seed)
        with tf.device("CPU"):
            weights = flat.pack(SparseTransformer(settings))
        for path, variable in trainer.variables.items():
            variable.assign(weights.get(path, start[path]))
        curve, seconds = [], []
        for step in range(settings.steps):
            tokens = tf.constant(batches.batch_at(source, step, settings.batch, seed))
            began = time.perf_counter()
            bits, _ = trainer.step(tokens, tf.constant(step, tf.int64))
            curve.append(round(float(bits), 4))
            seconds.append(time.perf_counter() - began)
        set_weights(trainer.model, trainer.variables)
        yield {
            "name": name,
            "seed": seed,
            "bits": round(mean_bits(trainer.model, held_out, limit=64, batch=8), 4),
            "parameters": trainer.model.count_params(),
            "seconds_per_step": round(timing.median(seconds), 4),
            **machine.record(),
            "python": platform.python_version(),
            "curve": curve,
        }


def report(results: dict) -> str:
    lines = ["| attention | bits per byte, a seed each | mean |", "| --- | --- | --- |"]
    for name, runs in results.items():
        bits = [run["bits"] for run in runs.values()]
        if bits:
            lines.append(f"| {name} | {', '.join(f'{b:.3f}' for b in bits)} | {sum(bits) / len(bits):.3f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--together", type=int, default=1, help="patterns at a time")
    parser.add_argument("--timeout", type=int, default=36000, help="seconds until what still runs is stopped")
    parser.add_argument("--override", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--one", metavar="PATTERN", help="one pattern, all seeds")
    parser.add_argument("--out", type=Path, default=Path("model_quality.json"))
    args = parser.parse_args()
    lines = args.out.with_suffix(".jsonl")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if args.one:
        for run in train(args, args.one):
            add(lines, run)
        return
    common = [
        "--steps",
        args.steps,
        "--seeds",
        args.seeds,
        "--out",
        args.out,
        *(w for o in args.override for w in ("--override", o)),
    ]
    commands = {name: [__file__, "--one", name, *common] for name in PATTERNS}
    together(commands, args.timeout, args.together)
    results: dict = {name: {} for name in PATTERNS}
    for run in sorted(read(lines), key=lambda run: run["seed"]):
        results[run.pop("name")][run.pop("seed")] = run
    settings = {**asdict(settings_of(args, "dense", 0)), "data": "Python standard library's source"}
    settings = {k: v for k, v in settings.items() if k not in ("name", "seed", "layer_modes")}
    args.out.write_text(json.dumps({"settings": settings, "results": results}) + "\n")
    lines.unlink(missing_ok=True)
    print(report(results))


if __name__ == "__main__":
    main()
