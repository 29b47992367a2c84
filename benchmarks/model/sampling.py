"""Sampling at a full context: tokens per second of the compiled loop, against a full forward pass for each token.

    python benchmarks/model/sampling.py enwik8 --tokens 512          # a GPU's case: 94.95M parameters, 12,288 positions
    python benchmarks/model/sampling.py imagenet64_small             # a CPU's: 12,288 positions, 4 layers of width 64

The weights are random, which changes no time. The loop costs the same at every position: its first tokens are timed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.common import examples  # noqa: F401  first

from benchmarks.common import machine, timing  # isort: skip
from benchmarks.common.processes import alone  # isort: skip
from sparse_transformer import config  # isort: skip


def measure(settings: config.Config, batch: int, tokens: int, repeats: int) -> dict:
    import tensorflow as tf
    from sparse_transformer.generation import make_generator
    from sparse_transformer.model import SparseTransformer

    model = SparseTransformer(settings)
    generate = make_generator(model, batch, tokens)
    none, full_context = tf.zeros([batch, 0], tf.int32), tf.zeros([batch, settings.n_ctx], tf.int32)
    full = tf.function(lambda tokens: model(tokens)[:, -1])

    def sample():
        generate(none, tf.constant(1.0), tf.constant(0)).numpy()

    def forward():
        full(full_context).numpy()

    (compiled,) = timing.wall(sample, 1, warm_up=0)
    forward()
    with alone():
        loop = timing.median(timing.wall(sample, repeats, warm_up=0)) / tokens
        whole = timing.median(timing.wall(forward, repeats, warm_up=0))
    return {
        "config": settings.name,
        "positions": settings.n_ctx,
        "batch": batch,
        **machine.record(),
        "tokens": tokens,
        "compile_seconds": round(compiled, 1),
        "tokens_per_second": round(batch / loop, 1),
        "tokens_per_second_full_forward": round(batch / whole, 3),
        "ratio": round(whole / loop, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", metavar="CONFIG", choices=config.names(), help=", ".join(config.names()))
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--override", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args()
    settings = config.load(args.config).override(args.override)
    record = measure(settings, args.batch, args.tokens, args.repeats)
    print(json.dumps(record, indent=1))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
