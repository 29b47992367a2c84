"""Sampling at a full context: tokens per second of the compiled loop, against a full forward pass for each token.

    python benchmarks/model_sampling.py enwik8 --tokens 512          # a GPU's case: 94.95M parameters, 12,288 positions
    python benchmarks/model_sampling.py imagenet64_small             # a CPU's: 12,288 positions, 4 layers of width 64

The weights are random, which changes no time. The loop costs the same at every position: its first tokens are timed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from processes import alone

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import config
import numpy as np
import tensorflow as tf
from sample import make_generator
from sparse_transformer import SparseTransformer


def seconds(call, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call().numpy()
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", choices=config.names())
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args()
    settings = config.load(args.config)
    model = SparseTransformer(settings)
    generate = make_generator(model, args.batch, args.tokens)
    none = tf.zeros([args.batch, 0], tf.int32)
    full = tf.function(lambda tokens: model(tokens)[:, -1])
    tokens = tf.zeros([args.batch, settings.n_ctx], tf.int32)

    def sample():
        return generate(none, tf.constant(1.0), tf.constant(0))

    began = time.perf_counter()
    sample()
    compiled = time.perf_counter() - began
    full(tokens)
    with alone():
        loop = seconds(sample, args.repeats) / args.tokens
        forward = seconds(lambda: full(tokens), args.repeats)
    gpus = tf.config.list_physical_devices("GPU")
    record = {
        "config": args.config,
        "positions": settings.n_ctx,
        "batch": args.batch,
        "tensorflow": tf.__version__,
        "device": tf.config.experimental.get_device_details(gpus[0]).get("device_name") if gpus else "CPU",
        "tokens": args.tokens,
        "compile_seconds": round(compiled, 1),
        "tokens_per_second": round(args.batch / loop, 1),
        "tokens_per_second_full_forward": round(args.batch / forward, 3),
        "ratio": round(forward / loop, 1),
    }
    print(json.dumps(record, indent=1))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
