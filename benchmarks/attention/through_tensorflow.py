"""Times this library through TensorFlow on the GPU benchmark's cases, and what else TensorFlow offers.

    python benchmarks/attention/through_tensorflow.py OUT.json [--cases NAME ...]

Every case is checked against float64 attention on two (batch row, head) pairs: device time, medians, caches flushed
before each run. Some cases also run in bfloat16, TF32 and exact float32. Beside the fused operation stand, with peak
memory and at 1 x 8 x 12288 x 64, dense attention in TensorFlow (attention_impl, with and without XLA) and OpenAI's
three steps. The host's share of one call is 200 chained calls on one block less 200 identities.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow.experimental.numpy as tnp

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.common import cases, timing, truth
from blocksparse import BlocksparseTransformer
from blocksparse.fused.op import kernel_name
from blocksparse.native.timing import device_ms
from sparse_attention import attention_impl, blocksparse_attention_impl, get_blocksparse_obj

OTHER_DTYPES = ("enwik8 fixed c32", "enwik8 local", "cifar strided")
DENSE = cases.Case("dense TensorFlow", 1, 8, 12288, 64, "all", 64)
STEPS = cases.Case("three steps", 1, 8, 12288, 64, "fixed", 32, 128, 4, 1)


def measurements(names: list[str]):
    """One row after the other; those named, or all."""
    yield host_overhead()
    chosen = [case for case in cases.GPU if not names or case.name in names]
    for case in chosen:
        yield sparse(case)
    for case in chosen:
        for dtype in ("bfloat16", "tf32", "float32") if case.name in OTHER_DTYPES else ():
            yield sparse(case, dtype)
    for case, versions in ((DENSE, dense()), (STEPS, three_steps())):
        for peer, attend, jit in versions if not names or case.name in names else ():
            yield dict(case=case.name, peer=peer) | with_memory(case, attend, jit)


def sparse(case: cases.Case, dtype: str = "float16") -> dict:
    """One case of this library; tf32 is float32 with TensorFlow's switch on."""
    started = time.perf_counter()
    row = dict(case=case.name, peer="this library", dtype=dtype) | measured(case, fused(case), dtype)
    return row | dict(seconds=round(time.perf_counter() - started, 1))


def fused(case: cases.Case):
    if case.attn_mode == "blocks":
        bst = BlocksparseTransformer(
            cases.layout(case), case.blocksize, case.heads, mask_callback=cases.causal
        )
        return lambda *qkv: bst.attention(*qkv, scale=case.dim**-0.5)
    if case.documents is None:
        return lambda *qkv: blocksparse_attention_impl(
            *qkv, case.heads, kv_heads=case.kv_heads, **case.pattern
        )
    # int64 lies on the card, where TensorFlow keeps int32 on the host: so the clock has a cast in it, and no copy.
    numbers = tf.constant(np.tile(np.arange(case.time) // case.documents, (case.batch, 1)), tf.int64)

    def attend(*qkv):
        ids = tf.cast(numbers, tf.int32)
        return blocksparse_attention_impl(
            *qkv, case.heads, kv_heads=case.kv_heads, segment_ids=ids, **case.pattern
        )

    return attend


def three_steps():
    """(peer, attention, whether XLA compiles it): OpenAI's program, and the one operation that stands for it."""
    bst = get_blocksparse_obj(STEPS.time, STEPS.heads, **STEPS.pattern)

    def attend(q, k, v):
        w = bst.query_key_op(q, k)
        w = bst.masked_softmax(w, scale=STEPS.dim**-0.5)
        return bst.weight_value_op(w, v)

    yield "three steps", attend, False
    yield "this library", fused(STEPS), False


def dense():
    for peer, function, jit in (
        ("dense TensorFlow", attention_impl, False),
        ("dense TensorFlow, XLA", attention_impl, True),
        ("this library", blocksparse_attention_impl, False),
    ):
        yield peer, lambda *qkv, f=function: f(*qkv, DENSE.heads, **DENSE.pattern), jit


def with_memory(case: cases.Case, attend, jit: bool) -> dict:
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
    if not error < truth.TOLERANCE["float16"]:
        return dict(relative_error=error, error="wrong answer, not timed")
    tf.config.experimental.reset_memory_stats("GPU:0")
    both(*inputs)[0].numpy()
    peak = tf.config.experimental.get_memory_info("GPU:0")["peak"]
    times = dict(forward_ms=device_ms(forward, inputs[:3], 5), both_ms=device_ms(both, inputs, 5))
    return dict(relative_error=error, peak_bytes=int(peak)) | times


def measured(case: cases.Case, attend, dtype: str) -> dict:
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

    error = relative_error(case, results, inputs)
    if not error < truth.TOLERANCE[dtype]:
        return dict(relative_error=error, error="wrong answer, not timed")
    times = dict(
        forward_ms=device_ms(attend, (q, k, v)),
        backward_ms=device_ms(lambda tape, *rest: tape.gradient(*rest), inputs, prepare=prepare),
    )
    return dict(relative_error=error) | times


def draw(case: cases.Case, dtype: str = "float16") -> list[tf.Tensor]:
    """q, k, v and the gradient of the result."""
    shapes = [
        (case.batch, case.time, case.heads // shared * case.dim) for shared in (1, case.group, case.group, 1)
    ]
    return [tf.cast(tf.random.stateless_normal(shape, [0, n]), dtype) for n, shape in enumerate(shapes)]


def relative_error(case: cases.Case, got, inputs) -> float:
    """The largest of out, dq, dk, dv on the first key head of the first batch row and the last of the last."""
    errors = []
    position = tf.range(case.time, dtype=tf.int64)
    q, k, v, dout, out, dq, dk, dv = (*inputs, *got)

    def head_of(x, row, head):
        return tf.cast(x[row, :, head * case.dim : (head + 1) * case.dim], tf.float64)

    for row, key_head in ((0, 0), (-1, case.heads // case.group - 1)):
        own, gradients = ([head_of(x, row, key_head) for x in pair] for pair in ((k, v), (dk, dv)))
        sums = dict(dk=0, dv=0)
        for head in range(key_head * case.group, (key_head + 1) * case.group):
            query, slope, result, dquery = (head_of(x, row, head) for x in (q, dout, out, dq))
            want = truth.attention(tnp, case.sees(head), position, query, *own, slope)
            errors.append(truth.relative_error(tnp, dict(out=result, dq=dquery), want))
            sums = {name: sums[name] + want[name] for name in sums}
        errors.append(truth.relative_error(tnp, dict(zip(("dk", "dv"), gradients)), sums))
    return max(errors)


def host_overhead() -> dict:
    """Microseconds of the host for one call inside a graph."""
    bst = BlocksparseTransformer(np.ones((1, 1), bool), 32, 1)
    x = tf.random.stateless_normal([1, 32, 32], [0, 0], dtype=tf.float16)

    def seconds(link) -> float:
        @tf.function(autograph=False)
        def chain(x):
            for _ in range(200):
                x = link(x)
            return x

        return timing.median(timing.wall(lambda: chain(x).numpy(), 30))

    microseconds = (seconds(lambda x: bst.attention(x, x, x)) - seconds(tf.identity)) / 200 * 1e6
    return dict(case="host overhead", peer="this library", microseconds=microseconds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", default=[], metavar="NAME", help="all of them by default")
    parser.add_argument("out", type=Path, help="JSON to write")
    args = parser.parse_args()
    if kernel_name() != "gpu":
        sys.exit(f"this measures the GPU kernels; here attention runs on {kernel_name()}")
    rows = []
    for row in measurements(args.cases):
        rows.append(row)
        print(json.dumps(row), flush=True)
        args.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
