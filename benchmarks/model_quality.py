"""Table 2's quality side in small: one model, data, number of steps, with dense, fixed and strided attention.

    python benchmarks/model_quality.py --out benchmarks/model_quality      # writes .json and .png

Bits per byte on held-out text with averaged weights, three seeds each. Paper, full size: 1.00, 0.99 and 1.13.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import config
import data
import matplotlib
import numpy as np
import tensorflow as tf
from evaluate import mean_bits
from trainer import Trainer

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PATTERNS = {"dense": ("all",), "fixed": ("fixed",), "strided": ("local+strided",)}


def train(settings: config.Config) -> dict:
    """The curve of one run, its result and its seconds a step."""
    trainer = Trainer(settings, tf.distribute.get_strategy())
    source = data.load(settings)
    curve, seconds = [], []
    for step in range(settings.steps):
        tokens = tf.constant(data.batch_at(source, step, settings.batch, settings.seed))
        began = time.perf_counter()
        bits, _ = trainer.step(tokens, tf.constant(step, tf.int64))
        curve.append(round(float(bits), 4))
        seconds.append(time.perf_counter() - began)
    variables = trainer.variables
    for weight in trainer.model.trainable_variables:
        weight.assign(variables[f"adam_w/{weight.path.replace('/', '_')}_average"])
    held_out = mean_bits(trainer.model, data.load(settings, split="valid"), limit=64, batch=8)
    return {
        "bits": round(held_out, 4),
        "seconds_per_step": round(float(np.median(seconds)), 4),
        "curve": curve,
    }


def report(results: dict) -> str:
    lines = ["| attention | " + " | ".join(f"seed {s}" for s in next(iter(results.values()))) + " | mean |"]
    lines.append("| --- " * (len(lines[0].split("|")) - 2) + "|")
    for name, runs in results.items():
        bits = [run["bits"] for run in runs.values()]
        lines.append(f"| {name} | " + " | ".join(f"{b:.3f}" for b in bits) + f" | {np.mean(bits):.3f} |")
    return "\n".join(lines)


def plot(results: dict, path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 4.5))
    for number, (name, runs) in enumerate(results.items()):
        for run in runs.values():
            mean = np.convolve(run["curve"], np.ones(10) / 10, mode="valid")
            axes.plot(np.arange(9, 9 + len(mean)), mean, color=f"C{number}", alpha=0.7)
        axes.plot([], [], color=f"C{number}", label=name)
    axes.set(xlabel="step", ylabel="training bits per byte (mean of 10 steps)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=130, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("model_quality"))
    args = parser.parse_args()
    base = replace(config.load("enwik8_small"), steps=args.steps)
    results: dict = {name: {} for name in PATTERNS}
    for seed in range(args.seeds):
        for name, modes in PATTERNS.items():
            results[name][seed] = train(replace(base, seed=seed, layer_modes=modes))
            print(
                f"{name}, seed {seed}: {results[name][seed]['bits']:.3f} bits per byte",
                file=sys.stderr,
                flush=True,
            )
    print(report(results))
    versions = {
        "tensorflow": tf.__version__,
        "python": platform.python_version(),
        "processor": platform.machine(),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    settings = {"config": "enwik8_small", "steps": args.steps, "data": "Python standard library's source"}
    record = {"settings": settings, "versions": versions, "results": results}
    args.out.with_suffix(".json").write_text(json.dumps(record) + "\n")
    plot(results, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
