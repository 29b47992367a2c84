"""Sampling at a full context: tokens per second of the compiled loop, against a full forward pass for each token.

    python benchmarks/model/sampling.py enwik8 --tokens 512          # a GPU's case: 94.95M parameters, 12,288 positions
    python benchmarks/model/sampling.py enwik8 --batch 1 32 64 --at 0 6144 12032 --kernels
    python benchmarks/model/sampling.py imagenet64_small             # a CPU's: 12,288 positions, 4 layers of width 64

The weights are random, which changes no time. A GPU's own kernels (way: gpu) read what a position sees, so that the
position counts; the loop that XLA compiles (xla) costs the same at every one. A line a batch and position: tokens and
microseconds a step, and milliseconds of a prompt that fills the context in one pass.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.common import examples  # noqa: F401  first

from benchmarks.common import machine, timing  # isort: skip
from benchmarks.common.processes import alone  # isort: skip
from sparse_transformer import config  # isort: skip

os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # other processes wait beside


def measure(
    settings: config.Config, batch: int, at: list[int], tokens: int, repeats: int, kernels: bool, full: bool
) -> list:
    """A record for each first position; full: with a prompt that fills the context and the full forward pass."""
    import numpy as np
    import tensorflow as tf
    from sparse_transformer import generation, gpu_sampling, stepping
    from sparse_transformer.model import SparseTransformer

    model = SparseTransformer(settings)
    decoders = model.decoders(batch)
    size = min(generation.CHUNK, tokens)
    chunk = generation.fastest_chunk(stepping.Chunk(model, batch, decoders, size))
    fill = tf.function(
        lambda prompt: stepping.prefill(model, decoders, prompt, settings.n_ctx), autograph=False
    )
    full_context = tf.zeros([batch, settings.n_ctx], tf.int32)
    whole = tf.function(lambda tokens: model(tokens)[:, -1])

    def sample(first):
        token = tf.zeros(batch, tf.int32)
        for done in range(0, tokens, size):
            position = tf.constant(first + done)
            _, token = chunk(token, position, position, tf.constant(1.0), tf.constant(0))
        return np.asarray(token)

    def prefill():
        fill(full_context)
        for step in decoders:
            step.caches[0][0].numpy()  # waits for the device

    def forward():
        whole(full_context).numpy()

    (compiled,) = timing.wall(lambda: sample(0), 1, warm_up=0)
    beside = [forward, prefill] if full else []
    for each in beside:
        each()
    with alone():
        loops = [
            timing.median(timing.wall(partial(sample, first), repeats, warm_up=1)) / tokens for first in at
        ]
        seconds = [timing.median(timing.wall(each, repeats, warm_up=0)) for each in beside]
    counted = {"kernels_per_step": kernels_per_step(model, batch, tokens, decoders)} if kernels else {}
    return [
        {
            "config": settings.name,
            "positions": settings.n_ctx,
            "batch": batch,
            "at": first,
            "way": "gpu" if gpu_sampling.serves(model, decoders) else "xla",
            **machine.record(),
            "tokens": tokens,
            "compile_seconds": round(compiled, 1),
            "tokens_per_second": round(batch / loop, 1),
            "us_per_step": round(loop * 1e6, 1),
            **(_beside(batch, loop, *seconds) if full else {}),
            **counted,
        }
        for first, loop in zip(at, loops, strict=True)
    ]


def _beside(batch: int, loop: float, whole: float, filling: float) -> dict:
    return {
        "tokens_per_second_full_forward": round(batch / whole, 3),
        "ratio": round(whole / loop, 1),
        "prefill_ms": round(filling * 1e3, 2),
    }


FREE = {"parameter", "get-tuple-element", "tuple", "constant", "bitcast"}  # instructions that launch nothing


def kernels_per_step(model, batch: int, tokens: int, decoders) -> int:
    """Instructions of XLA's loop that are launches: fusions, products, copies. Compiles once more."""
    import tensorflow as tf
    from sparse_transformer.generation import make_generator

    arguments = tf.zeros([batch, 0], tf.int32), tf.constant(1.0), tf.constant(0)
    generate = make_generator(model, batch, tokens, decoders)
    text = generate.experimental_get_compiler_ir(*arguments)(stage="optimized_hlo")
    bodies = set(re.findall(r"body=%?([\w.-]+)", text))
    found = re.finditer(r"^%?([\w.-]+) \(.*?\{\n(.*?)^\}", text, re.DOTALL | re.MULTILINE)
    computations = {match[1]: match[2].splitlines() for match in found}
    operations = ([OPERATION.match(line)[1] for line in computations[body]] for body in bodies)
    return max(sum(operation not in FREE for operation in body) for body in operations)


OPERATION = re.compile(r".*? = (?:\(.*?\)|\S+) ([\w-]+)\(")


def table(records: list[dict]) -> str:
    columns = [
        "batch",
        "at",
        "way",
        "tokens_per_second",
        "us_per_step",
        "prefill_ms",
        "kernels_per_step",
        "compile_seconds",
    ]
    columns = [column for column in columns if column in records[0]]
    rows = [columns, *([str(record[column]) for column in columns] for record in records)]
    return "\n".join(
        "  ".join(f"{word:>{len(name)}}" for word, name in zip(row, columns, strict=True)) for row in rows
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", metavar="CONFIG", choices=config.names(), help=", ".join(config.names()))
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument(
        "--at", type=int, nargs="+", default=[0], help="first position: later ones see more keys"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--override", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument(
        "--kernels", action="store_true", help="count those of a step, which compiles once more"
    )
    parser.add_argument("--steps-only", action="store_true", help="no prompt and no full forward pass")
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args()
    settings = config.load(args.config).override(args.override)
    records = [
        record
        for batch in args.batch
        for record in measure(
            settings, batch, args.at, args.tokens, args.repeats, args.kernels, not args.steps_only
        )
    ]
    print(table(records))
    text = json.dumps(records if len(records) > 1 else records[0], indent=1)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")
    else:
        print(text)


if __name__ == "__main__":
    main()
