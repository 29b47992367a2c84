"""Cost of attention over context length, dense against sparse with l = sqrt(n): n^2 against n sqrt(n).

    python benchmarks/model_context.py --out benchmarks/model_context [--longest 65536] [--dtype float16]

Forward and backward of one attention of 2 heads of 64, batch 1; medians. Each is first checked against the dense
reference at the shortest length. Writes .json and .png.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import matplotlib
import numpy as np
import tensorflow as tf

from sparse_attention import attention_impl, blocksparse_attention_impl

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HEADS, WIDTH = 2, 128
LENGTHS = {1024: 32, 4096: 64, 16384: 128, 65536: 256, 262144: 512, 1048576: 1024}  # n: l
DENSE = ("all",)
SPARSE = ("strided", "local", "fixed")


def pattern(mode: str, stride: int) -> dict:
    return {"heads": HEADS, "attn_mode": mode, "local_attn_ctx": stride, "blocksize": 8 if mode == "fixed" else 32,
            "num_verts": 2, "vertsize": 1}  # fmt: skip


def compiled(attend, mode: str, stride: int):
    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = attend(*tf.split(x, 3, axis=-1), **pattern(mode, stride))
            loss = tf.reduce_sum(tf.cast(y, tf.float32) ** 2)
        return y, tape.gradient(loss, x)

    return step


def check(mode: str, dtype: tf.DType) -> None:
    n, stride = next(iter(LENGTHS.items()))
    x = tf.cast(tf.random.stateless_normal([1, n, 3 * WIDTH], [1, 2]), dtype)
    tolerance = 1e-4 if dtype == tf.float32 else 3e-2
    steps = (compiled(attend, mode, stride) for attend in (blocksparse_attention_impl, attention_impl))
    for ours, reference in zip(*(step(x) for step in steps), strict=True):
        error = np.abs(np.float32(ours) - np.float32(reference)).max() / np.abs(np.float32(reference)).max()
        if not error < tolerance:
            sys.exit(
                f"model_context.py: {mode} is off by {error:.1e} from the dense reference; nothing is timed"
            )


def milliseconds(mode: str, n: int, stride: int, dtype: tf.DType, repeats: int) -> float:
    x = tf.cast(tf.random.stateless_normal([1, n, 3 * WIDTH], [1, 2]), dtype)
    step = compiled(blocksparse_attention_impl, mode, stride)
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        step(x)[1][0, 0, 0].numpy()  # waits for the device
        times.append(time.perf_counter() - began)
    return 1e3 * float(np.median(times[1:]))


def plot(results: dict, path: Path) -> None:
    figure, axes = plt.subplots(figsize=(6.5, 4.5))
    for mode, times in results.items():
        n = np.array([int(length) for length in times])
        axes.loglog(n, list(times.values()), "o-", label="dense" if mode in DENSE else mode)
    for power, mode in ((2.0, "all"), (1.5, "fixed")):
        first = int(next(iter(results[mode])))
        guide = next(reversed(results[mode].values())) * (n / int(next(reversed(results[mode])))) ** power
        axes.loglog(n[n >= first], guide[n >= first], ":", color="0.5", lw=1)
    axes.set(xlabel="context n (l = sqrt n; dotted: n^2 and n^1.5)", ylabel="forward and backward, ms")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=130, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--longest", type=int, default=65536)
    parser.add_argument("--longest-dense", type=int, default=16384)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("model_context"))
    args = parser.parse_args()
    dtype = tf.as_dtype(args.dtype)
    results: dict = {}
    for mode in (*DENSE, *SPARSE):
        check(mode, dtype)
        for n, stride in LENGTHS.items():
            if n > (args.longest_dense if mode in DENSE else args.longest):
                continue
            results.setdefault(mode, {})[n] = round(milliseconds(mode, n, stride, dtype, args.repeats), 3)
            print(f"{mode:8} n = {n:9,}  l = {stride:5,}  {results[mode][n]:10.2f} ms", flush=True)
    devices = [tf.config.experimental.get_device_details(d) for d in tf.config.list_physical_devices("GPU")]
    record = {
        "tensorflow": tf.__version__,
        "devices": devices or "CPU",
        "dtype": args.dtype,
        "milliseconds": results,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".json").write_text(json.dumps(record, indent=1, default=str) + "\n")
    plot(results, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
