"""A training step of small models on a CPU, beside the same models with dense attention in PyTorch.

    python benchmarks/model/step_cpu.py [--torch PYTHON] [--rounds 7] [--out JSON]

float32, nothing recomputed, one batch of random bytes. PyTorch runs in a process of its own (`--torch` names a Python
that has it; without one its column stays empty): scaled_dot_product_attention(is_causal=True), fused AdamW, gradients
clipped, not compiled, which here is slower. The sides take turns, so that each round is a comparison.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.common import examples  # noqa: F401  first

from benchmarks.common import machine, timing  # isort: skip
import step  # isort: skip
from sparse_transformer import config  # isort: skip

MODELS = {"cifar10_small": 2, "imagenet64_small": 1, "gcide_pocket": 2}  # and windows a batch
PLAIN = ["precision=float32", "xla=False", "recompute=none", "dropout=0.0"]
TORCH = """
import json, sys, time, torch
from torch import nn
from torch.nn import functional
settings = json.loads(sys.argv[1])
torch.set_num_threads(settings["cores"])
width, heads, hidden = settings["width"], settings["heads"], settings["hidden"]

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.maps, self.project = nn.Linear(width, 2 * settings["inner"] + width), nn.Linear(width, width)
        self.expand, self.contract = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        batch, positions, _ = x.shape
        parts = self.maps(self.norm(x)).split([settings["inner"]] * 2 + [width], -1)
        query, key, value = (part.view(batch, positions, heads, -1).transpose(1, 2) for part in parts)
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.project(attended.transpose(1, 2).reshape(batch, positions, width))
        inside = self.expand(self.second_norm(x))
        return x + self.contract(inside * torch.sigmoid(1.702 * inside))

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(256, width)
        self.places = nn.ParameterList(nn.Parameter(0.01 * torch.randn(size, width)) for size in settings["grid"])
        self.blocks = nn.Sequential(*(Block() for _ in range(settings["layers"])))
        self.norm, self.output = nn.LayerNorm(width), nn.Linear(width, 256)

    def forward(self, tokens):
        place = 0
        for axis, table in enumerate(self.places):
            shape = [1] * len(self.places)
            shape[axis] = table.shape[0]
            place = place + table.view(*shape, -1)
        return self.output(self.norm(self.blocks(self.embedding(tokens) + place.reshape(-1, width))))

model = Model()
optimizer = torch.optim.AdamW(model.parameters(), 3e-4, fused=True)
tokens = torch.randint(0, 256, (settings["batch"], settings["positions"]))
print(torch.__version__, sum(weight.numel() for weight in model.parameters()), flush=True)
for _ in sys.stdin:
    start = time.perf_counter()
    loss = functional.cross_entropy(model(tokens).view(-1, 256), tokens.view(-1))
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    loss.item()
    print(time.perf_counter() - start, flush=True)
"""


class Here:
    """The examples' trainer."""

    def __init__(self, settings):
        import numpy as np
        import tensorflow as tf

        self.step = step.Steps(settings).step
        drawn = np.random.default_rng(0).integers(0, 256, (settings.batch, settings.n_ctx))
        self.tokens, self.number = tf.constant(drawn, tf.int32), tf.constant(0, tf.int64)

    def seconds(self) -> float:
        return timing.wall(lambda: float(self.step(self.tokens, self.number)[0]), 1, warm_up=0)[0]


class Torch:
    """The same model, dense, in another process, which times itself."""

    def __init__(self, python: str, settings):
        sizes = {
            "cores": os.cpu_count(),
            "inner": int(settings.width * settings.key_ratio),
            "hidden": int(settings.width * settings.ff_ratio),
            "positions": settings.n_ctx,
            **{name: getattr(settings, name) for name in ("grid", "layers", "width", "heads", "batch")},
        }
        self.process = subprocess.Popen(
            [python, "-W", "ignore", "-c", TORCH, json.dumps(sizes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={**os.environ, "OMP_WAIT_POLICY": "passive"},  # its threads are not to spin while others run
        )
        self.version, parameters = self.process.stdout.readline().split()
        self.parameters = int(parameters)

    def seconds(self) -> float:
        self.process.stdin.write("\n")
        return float(self.process.stdout.readline())

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def compare(name: str, batch: int, python: str | None, rounds: int, overrides: list[str]) -> dict:
    """Medians in seconds, and times as fast as PyTorch in the same rounds."""
    settings = replace(config.load(name), batch=batch).override([*PLAIN, *overrides])
    here = Here(settings)
    torch = Torch(python, settings) if python else None
    sides = {"here": here, **({"torch": torch} if torch else {})}
    times: dict = {side: [] for side in sides}
    for number in range(rounds + 1):  # the first warms up
        for side, each in sides.items():
            found = each.seconds()
            times[side] += [found] if number else []
    row = {
        "config": name,
        "positions": settings.n_ctx,
        "layer_modes": settings.layer_modes,
        "batch": batch,
        **{f"seconds_{side}": round(timing.median(some), 4) for side, some in times.items()},
    }
    if torch:
        torch.end()
        row |= {
            "ratio": round(row["seconds_torch"] / row["seconds_here"], 2),
            "parameters_torch": torch.parameters,
            "torch": torch.version,
        }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=list(MODELS), metavar="MODEL", help=", ".join(MODELS))
    parser.add_argument("--torch", metavar="PYTHON", help="a Python that has PyTorch")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--override", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args()
    rows = [compare(name, MODELS[name], args.torch, args.rounds, args.override) for name in args.models]
    for row in rows:
        print(row)
    if args.out:
        about = {"dtype": "float32", "rounds": args.rounds, **machine.record()}
        args.out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
