"""Memory for attention in the backward pass of a 64-layer, 4-head model, as in OpenAI's post of 23 April 2019.

    python benchmarks/model/memory.py               # computed
    python benchmarks/model/memory.py --measure     # and, on a GPU, the peak of both passes, activations included;
                                                    # PyTorch's too, if it is there

Stored: every layer's n x n weights of every head in float32. Recomputed: one layer's at a time. Fused, as here: no
weights at all, only the log-sum-exp of each row.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.common.processes import TENSORFLOWS, add, alone, in_turns, read

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")

LAYERS, HEADS, HEAD_DIM, BYTES = 64, 4, 64, 4
WAYS = ("stored", "recomputed", "fused")
PYTORCH = "PyTorch"  # what its rows say that they are of
CASES = {"1,024 text tokens": 1024, "32x32x3 image": 3072, "64x64x3 image": 12288, "24,000 samples": 24000}
POST = {
    1024: ("1.0 GB", "16 MB"),
    3072: ("9.6 GB", "151 MB"),
    12288: ("154 GB", "2.4 GB"),
    24000: ("590 GB", "9.2 GB"),
}


def computed(n: int) -> tuple[int, int, int]:
    """Bytes stored, recomputed and fused."""
    one = n * n * HEADS * BYTES
    return one * LAYERS, one, n * HEADS * BYTES * LAYERS


def human(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def measure(n: int, way: str, out: Path) -> None:
    """Peak bytes above the input of LAYERS dense causal attentions, forward and backward."""
    import tensorflow as tf

    from sparse_attention import attention_impl, blocksparse_attention_impl

    attend = blocksparse_attention_impl if way == "fused" else attention_impl

    @tf.function(input_signature=[tf.TensorSpec([1, n // 32 * 32, HEADS * HEAD_DIM])])
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = x
            for _ in range(LAYERS):
                y += attend(y, y, y, HEADS, "all", recompute=way == "recomputed")
            loss = tf.reduce_sum(y**2)
        return tape.gradient(loss, x)

    gradient.get_concrete_function()
    with alone():
        x = tf.random.stateless_normal([1, n // 32 * 32, HEADS * HEAD_DIM], [1, 2])
        x.numpy()
        before = tf.config.experimental.get_memory_info("GPU:0")["current"]
        tf.config.experimental.reset_memory_stats("GPU:0")
        try:
            gradient(x).numpy()
            peak = tf.config.experimental.get_memory_info("GPU:0")["peak"] - before
        except tf.errors.ResourceExhaustedError:
            peak = None
        add(out, {"n": n, "way": way, "peak": peak})


def measure_all(out: Path, timeout: float) -> None:
    """What the file has not yet, each in a process of its own: PyTorch brings other CUDA libraries than TensorFlow."""
    known = {(r.get("of", "here"), r["n"], r["way"]) for r in read(out)}
    ours, theirs = {}, {}
    for n in CASES.values():
        for way in WAYS:
            fits = way == "fused" or n * n * HEADS < 2**31  # more elements than TensorFlow's kernels count
            if fits and ("here", n, way) not in known:
                ours[f"{n} {way}"] = [__file__, "--one", n, way, "--out", out]
            if (PYTORCH, n, way) not in known and importlib.util.find_spec("torch") is not None:
                script = Path(__file__).with_name("pytorch_memory.py")
                theirs[f"{PYTORCH} {n} {way}"] = [script, n, way, "--out", out]
    in_turns(theirs | ours, timeout, dict.fromkeys(theirs, TENSORFLOWS))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measure", action="store_true", help="measure too; needs a GPU")
    parser.add_argument("--one", nargs=2, metavar=("N", "WAY"), help="one measurement")
    parser.add_argument(
        "--out", type=Path, default=Path("model_memory.jsonl"), help="gets the measurements that it has not"
    )
    parser.add_argument("--timeout", type=int, default=600, help="seconds until what still runs is stopped")
    args = parser.parse_args()
    if args.one:
        measure(int(args.one[0]), args.one[1], args.out)
        return
    if args.measure:
        measure_all(args.out, args.timeout)
    found = {(r.get("of", "here"), r["n"], r["way"]): r["peak"] for r in read(args.out)}
    peaks = {key: human(peak) if peak else "does not fit" for key, peak in found.items()}
    sides = [(of, way) for of in ("here", PYTORCH) for way in WAYS if any(key[0] == of for key in peaks)]
    header = ["input", "stored", "post", "recomputed", "post", "fused"]
    header += [f"measured {of}: {way}" for of, way in sides]
    print("| " + " | ".join(header) + " |\n" + "| --- " * len(header) + "|")
    for name, n in CASES.items():
        stored, recomputed, fused = map(human, computed(n))
        cells = [name, stored, POST[n][0], recomputed, POST[n][1], fused]
        print("| " + " | ".join(cells + [peaks.get((of, n, way), "") for of, way in sides]) + " |")


if __name__ == "__main__":
    main()
