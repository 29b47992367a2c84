"""Memory for attention in the backward pass of a 64-layer, 4-head model, as in OpenAI's post of 23 April 2019.

    python benchmarks/model_memory.py               # computed
    python benchmarks/model_memory.py --measure     # and, on a GPU, the peak of a backward pass where it fits

Stored: every layer's n x n weights of every head in float32. Recomputed: one layer's at a time. Fused, as here: no
weights at all, only the log-sum-exp of each row.
"""

from __future__ import annotations

import argparse
import os
import sys

LAYERS, HEADS, HEAD_DIM, BYTES = 64, 4, 64, 4
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


def measured(n: int) -> list[str]:
    """Peak bytes above the input of LAYERS dense causal attentions, forward and backward: stored, recomputed, fused."""
    import tensorflow as tf

    from sparse_attention import attention_impl, blocksparse_attention_impl

    x = tf.random.stateless_normal([1, n // 32 * 32, HEADS * HEAD_DIM], [1, 2])
    cells = []
    for attend, recompute in (
        (attention_impl, False),
        (attention_impl, True),
        (blocksparse_attention_impl, False),
    ):

        @tf.function
        def gradient(x, attend=attend, recompute=recompute):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = x
                for _ in range(LAYERS):
                    y += attend(y, y, y, HEADS, "all", recompute=recompute)
                loss = tf.reduce_sum(y**2)
            return tape.gradient(loss, x)

        before = tf.config.experimental.get_memory_info("GPU:0")["current"]
        tf.config.experimental.reset_memory_stats("GPU:0")
        try:
            gradient(x).numpy()
            cells.append(human(tf.config.experimental.get_memory_info("GPU:0")["peak"] - before))
        except tf.errors.ResourceExhaustedError:
            cells.append("does not fit")
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measure", action="store_true", help="measure too; needs a GPU")
    args = parser.parse_args()
    os.environ.setdefault("TF_GPU_ALLOCATOR", "cuda_malloc_async")  # no fragmentation in what is measured
    header = ["input", "stored", "post", "recomputed", "post", "fused"]
    if args.measure:
        import tensorflow as tf

        if not tf.config.list_physical_devices("GPU"):
            sys.exit("model_memory.py: --measure needs a GPU, and TensorFlow sees none")
        header += ["measured: stored", "recomputed", "fused (with activations)"]
    print("| " + " | ".join(header) + " |\n" + "| --- " * len(header) + "|")
    for name, n in CASES.items():
        stored, recomputed, fused = map(human, computed(n))
        cells = [name, stored, POST[n][0], recomputed, POST[n][1], fused]
        print("| " + " | ".join(cells + (measured(n) if args.measure else [])) + " |", flush=True)


if __name__ == "__main__":
    main()
