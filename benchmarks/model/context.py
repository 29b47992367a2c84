"""Cost of attention over context length, dense against sparse with l = sqrt(n): n^2 against n sqrt(n).

    python benchmarks/model/context.py --out benchmarks/results/model_context.json [--longest 65536] [--dtype float16]

Forward and backward of one attention of 2 heads of 64, batch 1; medians. Each is first checked against float64 at the
shortest length. Dense stops where the next length would take minutes: sixteen times as long, six times over.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.common import cases, machine, timing, truth
from sparse_attention import blocksparse_attention_impl

MODES = ("all", "strided", "local", "fixed")


def compiled(case: cases.Case):
    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = blocksparse_attention_impl(*tf.split(x, 3, axis=-1), case.heads, **case.pattern)
            loss = tf.reduce_sum(tf.cast(y, tf.float32) ** 2)
        return y, tape.gradient(loss, x)

    return step


def draw(case: cases.Case, dtype: tf.DType) -> tf.Tensor:
    """q, k and v side by side."""
    shape = [case.batch, case.time, 3 * case.heads * case.dim]
    return tf.cast(tf.random.stateless_normal(shape, [1, 2]), dtype)


def check(case: cases.Case, dtype: tf.DType) -> None:
    """Ends the program where output or gradients are wrong by more than rounding."""
    x = draw(case, dtype)
    y, dx = compiled(case)(x)
    q, k, v, dq, dk, dv = (part.numpy()[0] for one in (x, dx) for part in tf.split(one, 3, axis=-1))
    for head in range(case.heads):
        columns = slice(head * case.dim, (head + 1) * case.dim)
        got = {"out": y.numpy()[0], "dq": dq, "dk": dk, "dv": dv}
        got = {name: np.float64(result[:, columns]) for name, result in got.items()}
        inputs = (np.float64(part[:, columns]) for part in (q, k, v))
        dout = 2 * got["out"]  # of the sum of squares
        want = truth.attention(np, case.sees(head), np.arange(case.time), *inputs, dout)
        error = truth.relative_error(np, got, want)
        if not error < truth.TOLERANCE[dtype.name]:
            sys.exit(f"context.py: {case.name} is wrong by {error:.1e}; nothing is timed")


def milliseconds(case: cases.Case, dtype: tf.DType, repeats: int) -> float:
    x, step = draw(case, dtype), compiled(case)
    return 1e3 * timing.median(
        timing.wall(lambda: step(x)[1][0, 0, 0].numpy(), repeats)
    )  # waits for the device


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--longest", type=int, default=65536)
    parser.add_argument("--longest-dense", type=int, default=16384)
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("model_context.json"))
    args = parser.parse_args()
    dtype = tf.as_dtype(args.dtype)
    results: dict = {}
    for mode in MODES:
        check(cases.at_context(mode, min(cases.CONTEXTS)), dtype)
        for n, stride in cases.CONTEXTS.items():
            if n > (args.longest_dense if mode == "all" else args.longest):
                continue
            ms = round(milliseconds(cases.at_context(mode, n), dtype, args.repeats), 3)
            results.setdefault(mode, {})[n] = ms
            print(f"{mode:8} n = {n:9,}  l = {stride:5,}  {ms:10.2f} ms", flush=True)
    record = {**machine.record(), "dtype": args.dtype, "milliseconds": results}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
