"""Times this library through TensorFlow on the GPU benchmark's cases, and dense attention in TensorFlow.

    python benchmarks/attention_gpu_tensorflow.py OUT.json [CASE ...]

Every case is checked against float32 attention on two (batch row, head) pairs before it is timed: device time, medians,
caches flushed before each run. Dense TensorFlow (attention_impl, with and without XLA) at 1 x 8 x 12288 x 64 comes with
peak memory, and the host's share of one call is 200 chained calls on one block less 200 identities.
"""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import replace
from pathlib import Path

import gpu_cases
import numpy as np
import tensorflow as tf

from blocksparse import BlocksparseTransformer
from blocksparse.gpu.timing import device_ms
from blocksparse.ops import Attention, kernel_name

ROWS = 2048  # of the score matrix at a time, in the check
TOLERANCE = 2e-2
DENSE = gpu_cases.Case("dense TensorFlow", 1, 8, 12288, 64, "all", 64)


def main(out_file: str, names: list[str]) -> None:
    assert kernel_name() == "gpu", kernel_name()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    rows = [host_overhead()]
    for case in gpu_cases.CASES:
        if not names or case.name in names:
            rows.append(sparse(case))
            report(rows, out_file)
    if not names or DENSE.name in names:
        for row in dense():
            rows.append(row)
            report(rows, out_file)


def report(rows: list[dict], out_file: str) -> None:
    print(json.dumps(rows[-1]), flush=True)
    Path(out_file).write_text(json.dumps(rows, indent=1))


def sparse(case: gpu_cases.Case) -> dict:
    """One case of this library."""
    started = time.perf_counter()
    made = gpu_cases.blocks(case)
    attention = Attention(
        replace(made, head_index=np.tile(made.head_index, case.heads // len(made.head_index)))
    )

    def attend(q, k, v):
        return attention(q, k, v, case.dim**-0.5, (case.order,) * case.heads)[0]

    row = dict(case=case.name, peer="this library") | measured(case, attend)
    return row | dict(seconds=round(time.perf_counter() - started, 1))


def dense() -> list[dict]:
    """attention_impl on one batch row, as TensorFlow runs it and through XLA; and this library beside it."""
    from sparse_attention import attention_impl, blocksparse_attention_impl

    rows = []
    for name, function, jit in (
        ("dense TensorFlow", attention_impl, False),
        ("dense TensorFlow, XLA", attention_impl, True),
        ("this library", blocksparse_attention_impl, False),
    ):

        @tf.function(autograph=False, jit_compile=jit)
        def attend(q, k, v, function=function):
            return function(q, k, v, DENSE.heads, "all", blocksize=DENSE.bs)

        @tf.function(autograph=False, jit_compile=jit)
        def both(q, k, v, dout, attend=attend):
            with tf.GradientTape() as tape:
                tape.watch((q, k, v))
                out = attend(q, k, v)
            return out, *tape.gradient(out, (q, k, v), dout)

        inputs = draw(DENSE)
        both(*inputs)
        tf.config.experimental.reset_memory_stats("GPU:0")
        both(*inputs)[0].numpy()
        peak = tf.config.experimental.get_memory_info("GPU:0")["peak"]
        times = dict(forward_ms=device_ms(attend, inputs[:3], 5), both_ms=device_ms(both, inputs, 5))
        rows.append(dict(case=DENSE.name, peer=name, peak_bytes=int(peak)) | times)
    return rows


def measured(case: gpu_cases.Case, attend) -> dict:
    """The largest relative error, and forward and backward milliseconds."""
    inputs = q, k, v, dout = draw(case)
    with tf.GradientTape() as tape:
        tape.watch((q, k, v))
        out = attend(q, k, v)
    error = relative_error(case, (out, *tape.gradient(out, (q, k, v), dout)), inputs)
    if not error < TOLERANCE:
        return dict(relative_error=error, error="wrong answer, not timed")

    def prepare(q, k, v, dout):
        with tf.GradientTape() as tape:
            tape.watch((q, k, v))
            out = attend(q, k, v)
        return tape, out, (q, k, v), dout

    return dict(
        relative_error=error,
        forward_ms=device_ms(attend, (q, k, v)),
        backward_ms=device_ms(lambda tape, *rest: tape.gradient(*rest), inputs, prepare=prepare),
    )


def draw(case: gpu_cases.Case) -> list[tf.Tensor]:
    """q, k, v and the gradient of the result."""
    shape = case.batch, case.time, case.heads * case.dim
    return [tf.random.stateless_normal(shape, [0, number], dtype=tf.float16) for number in range(4)]


def relative_error(case: gpu_cases.Case, got, inputs) -> float:
    """The largest of out, dq, dk, dv on the first head and the last one, against float32."""
    worst = 0.0
    for row, head in ((0, 0), (-1, case.heads - 1)):
        columns = slice(head * case.dim, (head + 1) * case.dim)
        q, k, v, dout = (tf.cast(x[row, :, columns], tf.float32) for x in inputs)
        for x, truth in zip(got, one_head(case, head, q, k, v, dout), strict=True):
            x = tf.cast(x[row, :, columns], tf.float32)
            worst = max(worst, float(tf.norm(x - truth) / tf.norm(truth)), key=lambda e: (math.isnan(e), e))
    return worst


@tf.function(autograph=False)
def rows_of_one_head(q, k, v, dout, seen, scale):
    p = tf.nn.softmax(tf.where(seen, tf.matmul(q, k, transpose_b=True) * scale, -math.inf))
    out = p @ v
    ds = p * (tf.matmul(dout, v, transpose_b=True) - tf.reduce_sum(out * dout, 1, keepdims=True)) * scale
    return out, ds @ k, tf.matmul(ds, q, transpose_a=True), tf.matmul(p, dout, transpose_a=True)


def one_head(case: gpu_cases.Case, head: int, q, k, v, dout):
    """(out, dq, dk, dv) of one head in float32, some rows at a time."""
    out, dq, dk, dv = [], [], 0, 0
    key = tf.range(case.time, dtype=tf.int64)[None, :]
    for start in range(0, case.time, ROWS):
        part = slice(start, start + ROWS)
        seen = gpu_cases.sees(case, head, tf.range(start, start + ROWS, dtype=tf.int64)[:, None], key)
        seen = seen[: q[part].shape[0]]
        results = rows_of_one_head(q[part], k, v, dout[part], seen, tf.constant(case.dim**-0.5))
        out.append(results[0])
        dq.append(results[1])
        dk, dv = dk + results[2], dv + results[3]
    return tf.concat(out, 0), tf.concat(dq, 0), dk, dv


def host_overhead() -> dict:
    """Microseconds of the host for one call inside a graph."""
    bst = BlocksparseTransformer(np.ones((1, 1), bool), 32, 1)
    x = tf.random.stateless_normal([1, 32, 32], [0, 0], dtype=tf.float16)

    def best(link) -> float:
        @tf.function(autograph=False)
        def chain(x):
            for _ in range(200):
                x = link(x)
            return x

        times = []
        for _ in range(30):
            start = time.perf_counter()
            chain(x).numpy()
            times.append(time.perf_counter() - start)
        return sorted(times)[len(times) // 2]

    microseconds = (best(lambda x: bst.attention(x, x, x)) - best(tf.identity)) / 200 * 1e6
    return dict(case="host overhead", peer="this library", microseconds=microseconds)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
