"""Values and gradients of the fused attention against the float64 oracle, for every kernel that this machine has."""

import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import oracle
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layouts import SEGMENTS, causal, segments

from blocksparse import BlocksparseTransformer, clear_bst_constants
from blocksparse.fused import op, reference

EPSILON = {"float32": 2**-21, "float16": 2**-10, "bfloat16": 2**-7}
ROOT = Path(__file__).parents[2]


def random_mask(seed):
    """A callback with whole, empty and ragged blocks, the same for the same block."""

    def callback(blk_shape, head_idx, qry_idx, key_idx, blk_idx):
        generator = np.random.default_rng([seed, head_idx, qry_idx, key_idx])
        kind = generator.integers(4)
        return generator.random(blk_shape) < (1.0, 0.0, 0.5, 0.9)[kind]

    return callback


@st.composite
def problems(draw):
    """A layout with its masks, and everything else that attention takes."""
    block_size = draw(st.sampled_from([8, 16, 32, 64, 128]))
    heads = draw(st.integers(1, 3))
    most = max(1, 256 // block_size)
    query_blocks, key_blocks = draw(st.integers(1, most)), draw(st.integers(1, most))
    strides = [s for s in (1, 2, 3, 4) if query_blocks % s == 0 and key_blocks % s == 0]
    order = [draw(st.sampled_from(strides)) for _ in range(heads)]
    return dict(
        block_size=block_size,
        heads=heads,
        shared=draw(st.booleans()),
        shape=(query_blocks, key_blocks),
        density=draw(st.sampled_from([0.0, 0.2, 0.6, 1.0])),
        masked=draw(st.booleans()),
        order=order if draw(st.booleans()) else 1,
        head_dim=draw(st.sampled_from([8, 16, 24])),
        value_dim=draw(st.sampled_from([8, 40])),
        batch=draw(st.integers(1, 2)),
        dtype=draw(st.sampled_from(["float32", "float16", "bfloat16"])),
        segments=draw(st.sampled_from([None, *SEGMENTS])),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


def gradients(function, inputs, dout, dlse):
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        out, lse = function(*inputs)
    return out, lse, *tape.gradient([out, lse], inputs, [dout, dlse])


@settings(max_examples=45, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(problem=problems())
def test_values_and_gradients(kernels, problem):
    p = problem
    generator = np.random.default_rng(p["seed"])
    layout = generator.random(p["shape"] if p["shared"] else (p["heads"], *p["shape"])) < p["density"]
    callback = random_mask(p["seed"]) if p["masked"] else None
    bst = BlocksparseTransformer(layout, p["block_size"], p["heads"], callback)
    visible = oracle.dense_mask(layout, p["block_size"], callback, p["heads"], p["order"])
    q, k, v, dout = (
        tf.cast(generator.standard_normal((p["batch"], time, p["heads"] * d)), p["dtype"])
        for time, d in (
            (visible.shape[1], p["head_dim"]),
            (visible.shape[2], p["head_dim"]),
            (visible.shape[2], p["value_dim"]),
            (visible.shape[1], p["value_dim"]),
        )
    )
    dlse = tf.constant(generator.standard_normal((p["batch"], *visible.shape[:2])), tf.float32)
    scale = float(generator.uniform(0.1, 0.5))
    given = dict(scale=scale, order=p["order"], with_lse=True)
    if p["segments"]:
        given["segment_ids"], meeting = segments(generator, p["segments"], p["batch"], *visible.shape[1:])
        visible = visible & meeting
    got = gradients(lambda *x: bst.attention(*x, **given), [q, k, v], dout, dlse)
    want = oracle.attention(*(x.numpy() for x in (q, k, v)), visible, scale, dout.numpy(), dlse.numpy())
    for name, x, truth in zip(("out", "lse", "dq", "dk", "dv"), got, want, strict=True):
        epsilon = EPSILON["float32"] * 8 if name == "lse" else EPSILON[p["dtype"]]
        assert x.dtype == ("float32" if name == "lse" else p["dtype"])
        oracle.assert_close(name, tf.cast(x, tf.float64), truth, epsilon)


@pytest.fixture
def small():
    """A causal transformer over 4 blocks of 16, 2 heads, and inputs for it."""
    bst = BlocksparseTransformer(np.tri(4, dtype=bool), 16, 2, causal)
    generator = np.random.default_rng(0)
    inputs = [tf.constant(generator.standard_normal((3, 64, 16)), tf.float32) for _ in range(3)]
    return bst, inputs


@pytest.mark.parametrize("jit_compile", [None, True])
def test_functions_with_unknown_batch(kernels, small, jit_compile):
    bst, inputs = small
    spec = [tf.TensorSpec([None, 64, 16])] * 3

    @tf.function(input_signature=spec, jit_compile=jit_compile)
    def step(q, k, v):
        dout, dlse = tf.ones_like(v), tf.ones([tf.shape(q)[0], 2, 64])
        return gradients(lambda *x: bst.attention(*x, with_lse=True), [q, k, v], dout, dlse)

    eager = gradients(
        lambda *x: bst.attention(*x, with_lse=True), inputs, tf.ones([3, 64, 16]), tf.ones([3, 2, 64])
    )
    for a, b in zip(step(*inputs), eager, strict=True):
        oracle.assert_close("batch of 3", a, b, EPSILON["float32"])
    for a, b in zip(step(*(x[:1] for x in inputs)), eager, strict=True):
        oracle.assert_close("batch of 1", a, b[:1], EPSILON["float32"])
    assert [x.shape[0] for x in step(*(x[:0] for x in inputs))] == [0] * 5


@pytest.mark.parametrize(("per_head", "jit_compile"), [(False, None), (True, None), (True, True)])
def test_the_reference_in_many_chunks(monkeypatch, per_head, jit_compile):
    """Long rows are walked by a loop; what it computes does not depend on where it is cut."""
    monkeypatch.setenv("BLOCKSPARSE_KERNELS", "reference")
    monkeypatch.setattr(reference, "_CHUNK", 1 << 15)
    layout = np.stack([np.tri(12), np.tri(12) * (np.arange(12) % 3 > 0)]) if per_head else np.tri(12)
    bst = BlocksparseTransformer(layout, 8, 2, causal)
    tables = bst._attention.tables((1, 1), kv_heads=2)
    assert max(len(chunk.rows) for chunk in tables.by_key.chunks) > 1
    generator = np.random.default_rng(5)
    q, k, v, dout = (generator.standard_normal((2, 96, 16)).astype(np.float32) for _ in range(4))
    dlse = generator.standard_normal((2, 2, 96)).astype(np.float32)
    step = tf.function(
        lambda *x: gradients(lambda *y: bst.attention(*y, scale=0.3, with_lse=True), list(x), dout, dlse),
        jit_compile=jit_compile,
    )
    visible = oracle.dense_mask(layout, 8, causal, 2)
    want = oracle.attention(q, k, v, visible, 0.3, dout, np.where(visible.any(2), dlse, 0))
    for name, x, truth in zip(("out", "lse", "dq", "dk", "dv"), step(q, k, v), want, strict=True):
        oracle.assert_close(name, x, truth, EPSILON["float32"])


def test_same_bits_every_run(kernels, small):
    bst, inputs = small
    ones = tf.ones([3, 64, 16]), tf.ones([3, 2, 64])
    first, second = (gradients(lambda *x: bst.attention(*x, with_lse=True), inputs, *ones) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def test_threads_share_one_transformer(kernels):
    """Plans and tables are built once by whichever thread comes first, in eager mode and in functions."""
    generator = np.random.default_rng(1)
    bst = BlocksparseTransformer(np.tri(8, dtype=bool), 16, 2, causal)
    q, k, v = (tf.constant(generator.standard_normal((1, 128, 16)), tf.float32) for _ in range(3))
    start, results = threading.Barrier(4), [None] * 4

    def work(number):
        start.wait()
        function = tf.function(bst.attention) if number % 2 else bst.attention
        results[number] = function(q, k, v).numpy()

    threads = [threading.Thread(target=work, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results[1:]:
        np.testing.assert_array_equal(results[0], result)


def test_no_second_derivative(kernels, small):
    bst, inputs = small
    with tf.GradientTape() as outer:
        outer.watch(inputs)
        with tf.GradientTape() as inner:
            inner.watch(inputs)
            y = tf.reduce_sum(bst.attention(*inputs) ** 2)
        gradient = inner.gradient(y, inputs)
    with pytest.raises(LookupError, match="no second derivative"):
        outer.gradient(gradient, inputs)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["q", "k", "v", "dout"])
def test_how_far_nan_spreads(kernels, name, value):
    """In k: to the queries that see it. Elsewhere: to the tile of at most 128 rows and columns that holds it."""
    n, at = 512, 200
    bst = BlocksparseTransformer(
        np.tri(n // 8, dtype=bool) & ~np.tri(n // 8, k=-3, dtype=bool), 8, 2, local(16)
    )
    visible = oracle.dense_mask(np.tri(n // 8), 8, local(16))[0]
    generator = np.random.default_rng(2)
    names = ("q", "k", "v", "dout")
    x = {key: generator.standard_normal((2, n, 16)).astype(np.float32) for key in names}
    x[name][0, at, 3] = value
    inputs = [tf.constant(x[key]) for key in names[:3]]
    got = gradients(
        lambda *x: bst.attention(*x, with_lse=True), inputs, tf.constant(x["dout"]), tf.zeros([2, 2, n])
    )
    reach = {
        key: ~np.isfinite(y.numpy()) for key, y in zip(("out", "lse", "dq", "dk", "dv"), got, strict=True)
    }
    for key, spread in reach.items():
        assert not spread[1].any(), f"{key}: another batch row"
        assert not (spread[0, 1].any() if key == "lse" else spread[0, :, 8:].any()), f"{key}: another head"
        rows = spread[0, 0] if key == "lse" else spread[0].any(1)
        far = np.abs(np.arange(n) - at) > 16 + (128 if name != "k" else 16)
        assert not rows[far].any(), f"{key}: rows {np.flatnonzero(rows & far)} far from {at}"
        if name == "k" and key in ("out", "lse", "dq"):
            assert not (rows & ~visible[:, at]).any(), f"{key}: a query that does not see the key"
    if name == "k" and np.isnan(value):
        assert reach["out"][0].any(1)[visible[:, at]].all() and reach["lse"][0, 0][visible[:, at]].all()


def local(window):
    def callback(blk_shape, head_idx, qry_idx, key_idx, blk_idx):
        i, j = np.ogrid[: blk_shape[0], : blk_shape[1]]
        distance = (qry_idx - key_idx) * blk_shape[0] + i - j
        return (distance >= 0) & (distance < window)

    return callback


def test_merging_two_parts_by_lse(kernels):
    """The gradient through lse is right, empty rows included: two halves of the keys, joined, equal all of them."""
    layout = np.tri(4, dtype=bool)
    parts = [BlocksparseTransformer(layout & (np.arange(4) % 2 == p), 16, 2, causal) for p in (0, 1)]
    both = BlocksparseTransformer(layout, 16, 2, causal)
    generator = np.random.default_rng(3)
    inputs = [tf.constant(generator.standard_normal((2, 64, 16)), tf.float32) for _ in range(3)]

    def merged(q, k, v):
        (a, la), (b, lb) = (part.attention(q, k, v, with_lse=True) for part in parts)
        weight = tf.sigmoid(
            tf.where(tf.math.is_inf(lb), -100.0, lb) - tf.where(tf.math.is_inf(la), -100.0, la)
        )
        weight = tf.where(tf.math.is_inf(lb), 0.0, weight)
        weight = tf.repeat(tf.transpose(weight, [0, 2, 1]), 8, axis=2)
        return (1 - weight) * a + weight * b

    for function in (merged, both.attention):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            y = function(*inputs)
        got = y, *tape.gradient(y, inputs, tf.sin(y))
        if function is merged:
            first = got
    for a, b in zip(first, got, strict=True):
        oracle.assert_close("joined", a, b, EPSILON["float32"])


def test_head_dims_the_gpu_does_not_take_run_on_the_reference_with_one_warning(monkeypatch):
    monkeypatch.setattr(op.cuda, "capabilities", lambda: (90,))
    monkeypatch.setattr(op, "_library", object)
    op.warn_of_reference.cache_clear()
    bst = BlocksparseTransformer(np.tri(2, dtype=bool), 16, 1, causal)
    generator = np.random.default_rng(4)
    q, k, v = (generator.standard_normal((1, 32, 5)) for _ in range(3))
    want, _ = oracle.attention(q, k, v, np.tri(32, dtype=bool)[None], 5**-0.5)
    with pytest.warns(RuntimeWarning, match="slower .* head_dim=5, value_dim=5: .* multiples of 8") as warned:
        for _ in range(2):
            got = bst.attention(*(tf.constant(x, tf.float32) for x in (q, k, v)))
            oracle.assert_close("out", got, want, EPSILON["float32"])
    assert len(warned) == 1


def test_odd_head_dims_run_on_the_kernels_of_the_cpu(kernels):
    function = tf.function(BlocksparseTransformer(np.tri(2, dtype=bool), 16, 1, causal).attention)
    operations = function.get_concrete_function(*[tf.TensorSpec((1, 32, 5))] * 3).graph.get_operations()
    assert any(op.type == "BlocksparseAttention" for op in operations) == (op.kernel_name() == "cpu")


def test_plans_are_kept_by_everything_that_makes_them_differ(kernels, small):
    bst, inputs = small
    first = bst.attention(*inputs, order=1)
    second = bst.attention(*inputs, order=2)
    assert np.abs(first - second).max() > 0.1
    np.testing.assert_array_equal(bst.attention(*inputs, order=[1, 1]), first)
    mixed = bst.attention(*inputs, order=[1, 2])
    np.testing.assert_array_equal(mixed[..., :8], first[..., :8])
    np.testing.assert_array_equal(mixed[..., 8:], second[..., 8:])
    clear_bst_constants()
    np.testing.assert_array_equal(bst.attention(*inputs), first)


def test_unknown_kernel_choice(monkeypatch, small):
    monkeypatch.setenv("BLOCKSPARSE_KERNELS", "fast")
    bst, inputs = small
    with pytest.raises(
        ValueError, match="BLOCKSPARSE_KERNELS=fast is not known; it can be one of auto, reference"
    ):
        bst.attention(*inputs)


def test_nothing_larger_than_the_inputs_is_kept_for_the_gradient(kernels):
    bst = BlocksparseTransformer(np.tri(16, dtype=bool), 32, 1, causal)
    spec = [tf.TensorSpec([1, 512, 8])] * 3
    forward = tf.function(lambda q, k, v: bst.attention(q, k, v) ** 2).get_concrete_function(*spec)
    forward_pass, _ = forward._delayed_rewrite_functions.forward_backward()
    assert max(output.shape.num_elements() for output in forward_pass.graph.outputs) <= 512 * 8


GRAPH = """
    import numpy as np, tensorflow.compat.v1 as tf
    tf.disable_v2_behavior()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    from blocksparse import BlocksparseTransformer, clear_bst_constants
    from blocksparse.fused import op, reference

    causal = lambda s, h, q, k, b: np.tri(*s, k=(q - k) * s[0], dtype=bool)
    bst = BlocksparseTransformer(np.tri(4, dtype=bool), 16, 2, causal)
    for _ in range(2):
        with tf.Graph().as_default() as graph:
            q, k, v = (tf.placeholder(tf.float32, [None, 64, 16]) for _ in range(3))
            steps = bst.weight_value_op(bst.masked_softmax(bst.query_key_op(q, k), 8 ** -0.5), v)
            fused = bst.attention(q, k, v)
            both = [[y, *tf.gradients(y * y, [q, k, v])] for y in (steps, fused)]
            again = bst.attention(v, k, q)
            plans = [op for op in graph.get_operations() if "blocksparse_plan" in op.name]
            assert len(plans) == (op.kernel_name() != "reference"), plans
            with tf.Session() as session:
                for batch in (1, 3):
                    feed = {x: np.random.default_rng(batch).standard_normal((batch, 64, 16)) for x in (q, k, v)}
                    for a, b in zip(*session.run(both, feed)):
                        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())
                options, data = tf.RunOptions(output_partition_graphs=True), tf.RunMetadata()
                session.run(both[1], feed, options, data)
        clear_bst_constants()
    ran = [node.op for part in data.partition_graphs for node in part.node]
    print(sum("MatMul" in op or op.startswith("BlocksparseAttention") for op in ran))
"""


def run_python(text, *arguments, kernels):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "BLOCKSPARSE_KERNELS": kernels}
    command = [sys.executable, "-c", textwrap.dedent(text), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def test_graphs_and_sessions(kernels):
    """TensorFlow 1: unknown batch, one plan constant a graph, and after optimisation the backward pass still computes
    its own scores: 2 products forward and 3 + 4 backward in each of the 4 rectangles of rows, or two ops."""
    assert run_python(GRAPH, kernels=kernels) == {"auto": "2", "reference": str(4 * (2 + 3 + 4))}[kernels]


SAVE = """
    import numpy as np, sys, tensorflow as tf
    from blocksparse import BlocksparseTransformer
    from blocksparse.fused import op

    causal = lambda s, h, q, k, b: np.tri(*s, k=(q - k) * s[0], dtype=bool)
    x = tf.reshape(tf.sin(tf.range(3 * 64 * 16, dtype=tf.float32)), [3, 64, 16])
    for path in sys.argv[1:]:
        bst = BlocksparseTransformer(np.tri(4, dtype=bool), 16, 2, causal)
        module = tf.Module()
        module.w = tf.Variable(tf.ones([16, 16]))
        attend = lambda x: bst.attention(x @ module.w, x, x)
        module.f = tf.function(attend, [tf.TensorSpec([None, 64, 16])])
        tf.saved_model.save(module, path)
        np.save(path + "/y.npy", module.f(x))
        graph = module.f.get_concrete_function().graph
        print(sum(op.type == "BlocksparsePlan" for op in graph.get_operations()))
        op._LARGEST_CONSTANT = 0
"""
LOAD = """
    import blocksparse, numpy as np, sys, tensorflow as tf

    x = tf.reshape(tf.sin(tf.range(3 * 64 * 16, dtype=tf.float32)), [3, 64, 16])
    for path in sys.argv[1:]:
        module = tf.saved_model.load(path)
        with tf.GradientTape() as tape:
            y = module.f(x)
        np.testing.assert_array_equal(y, np.load(path + "/y.npy"))
        assert np.isfinite(tape.gradient(y, module.w)).all()
        print(module.f(x[:1]).shape)
"""


def test_saved_models_in_a_fresh_process(kernels, tmp_path):
    """With the plan as a constant, then as the op that carries plans too large for one."""
    paths = tmp_path / "constant", tmp_path / "op"
    assert run_python(SAVE, *paths, kernels=kernels).split() == ["0", str(int(kernels == "auto"))]
    assert run_python(LOAD, *paths, kernels=kernels).splitlines() == ["(1, 64, 16)"] * 2
