"""Times this library through TensorFlow on the GPU benchmark's cases, and what else TensorFlow offers.

    python benchmarks/attention_gpu_tensorflow.py OUT.json [CASE ...]

Every case is checked against float32 attention on two (batch row, head) pairs: device time, medians, caches flushed
before each run. Some cases also run in bfloat16, TF32 and exact float32. Beside the fused operation stand, with peak
memory and at 1 x 8 x 12288 x 64, dense attention in TensorFlow (attention_impl, with and without XLA) and OpenAI's
three steps. The host's share of one call is 200 chained calls on one block less 200 identities.
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
from blocksparse.fused.op import Attention, kernel_name
from blocksparse.native.timing import device_ms

ROWS = 2048  # of the score matrix at a time, in the check
TOLERANCE = {"float16": 2e-2, "bfloat16": 2e-2, "tf32": 5e-3, "float32": 1e-5}
OTHER_DTYPES = ("enwik8 fixed c32", "enwik8 local", "cifar strided")
DENSE = gpu_cases.Case("dense TensorFlow", 1, 8, 12288, 64, "all", 64)
STEPS = gpu_cases.Case("three steps", 1, 8, 12288, 64, "fixed:128:32:4", 32)


def main(out_file: str, names: list[str]) -> None:
    assert kernel_name() == "gpu", kernel_name()
    rows = []
    for row in measurements(names):
        rows.append(row)
        print(json.dumps(row), flush=True)
        Path(out_file).write_text(json.dumps(rows, indent=1))


def measurements(names: list[str]):
    """One row after the other; those named, or all."""
    yield host_overhead()
    cases = [case for case in gpu_cases.CASES if not names or case.name in names]
    for case in cases:
        yield sparse(case)
    for case in cases:
        for dtype in ("bfloat16", "tf32", "float32") if case.name in OTHER_DTYPES else ():
            yield sparse(case, dtype)
    for case, versions in ((DENSE, dense()), (STEPS, three_steps())):
        for peer, attend, jit in versions if not names or case.name in names else ():
            yield dict(case=case.name, peer=peer) | with_memory(case, attend, jit)


def sparse(case: gpu_cases.Case, dtype: str = "float16") -> dict:
    """One case of this library; tf32 is float32 with TensorFlow's switch on."""
    started = time.perf_counter()
    row = dict(case=case.name, peer="this library", dtype=dtype) | measured(case, fused(case), dtype)
    return row | dict(seconds=round(time.perf_counter() - started, 1))


def fused(case: gpu_cases.Case):
    made = gpu_cases.blocks(case)
    attention = Attention(
        replace(made, head_index=np.tile(made.head_index, case.heads // len(made.head_index)))
    )
    return lambda q, k, v: attention(q, k, v, case.dim**-0.5, (case.order,) * case.heads)[0]


def three_steps():
    """(peer, attention, whether XLA compiles it): OpenAI's program, and the one operation that stands for it."""
    from sparse_attention import get_blocksparse_obj

    size, width, groups = STEPS.numbers
    bst = get_blocksparse_obj(
        STEPS.time, STEPS.heads, "fixed", STEPS.bs, size, num_verts=groups, vertsize=width // STEPS.bs
    )

    def attend(q, k, v):
        w = bst.query_key_op(q, k)
        w = bst.masked_softmax(w, scale=STEPS.dim**-0.5)
        return bst.weight_value_op(w, v)

    yield "three steps", attend, False
    yield "this library", fused(STEPS), False


def dense():
    from sparse_attention import attention_impl, blocksparse_attention_impl

    for peer, function, jit in (
        ("dense TensorFlow", attention_impl, False),
        ("dense TensorFlow, XLA", attention_impl, True),
        ("this library", blocksparse_attention_impl, False),
    ):
        yield peer, lambda *qkv, f=function: f(*qkv, DENSE.heads, "all", blocksize=DENSE.bs), jit


def with_memory(case: gpu_cases.Case, attend, jit: bool) -> dict:
    """Milliseconds forward and of both passes, and the most memory that both take, their inputs included."""

    @tf.function(autograph=False, jit_compile=jit)
    def forward(q, k, v):
        return attend(q, k, v)

    @tf.function(autograph=False, jit_compile=jit)
    def both(q, k, v, dout):
        with tf.GradientTape() as tape:
            tape.watch((q, k, v))
            out = attend(q, k, v)
        return out, *tape.gradient(out, (q, k, v), dout)

    inputs = draw(case)
    error = relative_error(case, both(*inputs), inputs)
    if not error < TOLERANCE["float16"]:
        return dict(relative_error=error, error="wrong answer, not timed")
    tf.config.experimental.reset_memory_stats("GPU:0")
    both(*inputs)[0].numpy()
    peak = tf.config.experimental.get_memory_info("GPU:0")["peak"]
    times = dict(forward_ms=device_ms(forward, inputs[:3], 5), both_ms=device_ms(both, inputs, 5))
    return dict(relative_error=error, peak_bytes=int(peak)) | times


def measured(case: gpu_cases.Case, attend, dtype: str) -> dict:
    """The largest relative error, and forward and backward milliseconds."""
    tf.config.experimental.enable_tensor_float_32_execution(dtype == "tf32")
    inputs = q, k, v, dout = draw(case, "float32" if dtype == "tf32" else dtype)
    with tf.GradientTape() as tape:
        tape.watch((q, k, v))
        out = attend(q, k, v)
    results = out, *tape.gradient(out, (q, k, v), dout)

    def prepare(q, k, v, dout):
        with tf.GradientTape() as tape:
            tape.watch((q, k, v))
            out = attend(q, k, v)
        return tape, out, (q, k, v), dout

    times = dict(
        forward_ms=device_ms(attend, (q, k, v)),
        backward_ms=device_ms(lambda tape, *rest: tape.gradient(*rest), inputs, prepare=prepare),
    )
    error = relative_error(case, results, inputs)
    if not error < TOLERANCE[dtype]:
        return dict(relative_error=error, error="wrong answer")
    return dict(relative_error=error) | times


def draw(case: gpu_cases.Case, dtype: str = "float16") -> list[tf.Tensor]:
    """q, k, v and the gradient of the result."""
    shape = case.batch, case.time, case.heads * case.dim
    return [tf.cast(tf.random.stateless_normal(shape, [0, number]), dtype) for number in range(4)]


def relative_error(case: gpu_cases.Case, got, inputs) -> float:
    """The largest of out, dq, dk, dv on the first head and the last one, against float32."""
    tf.config.experimental.enable_tensor_float_32_execution(False)
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

    def median(link) -> float:
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

    microseconds = (median(lambda x: bst.attention(x, x, x)) - median(tf.identity)) / 200 * 1e6
    return dict(case="host overhead", peer="this library", microseconds=microseconds)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
