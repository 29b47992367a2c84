"""Attention under jit_compile on the CPU: the same bits as without, whatever else was compiled before."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tensorflow as tf
from layouts import ragged

from blocksparse import BlocksparseTransformer
from blocksparse.fused import op
from blocksparse.native import devices
from blocksparse.native.compiler import BuildError

pytestmark = pytest.mark.slow  # the XLA library takes up to a minute to build


@pytest.fixture(scope="module", autouse=True)
def library():
    try:
        devices.xla_library()
    except BuildError as error:
        pytest.skip(str(error))
    assert op.kernel_name() != "reference"


def problem(dtype, blocks=(6, 6), order=1, batch=2):
    """(step, its inputs): out, lse and all gradients of an attention with ragged masks."""
    generator = np.random.default_rng(0)
    bst = BlocksparseTransformer(generator.random((3, *blocks)) < 0.7, 32, 3, ragged)
    shapes = (blocks[0], 16), (blocks[1], 16), (blocks[1], 24)
    inputs = [tf.cast(generator.standard_normal((batch, rows * 32, 3 * dim)), dtype) for rows, dim in shapes]

    def step(*inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            out, lse = bst.attention(*inputs, order=order, with_lse=True)
            seen = tf.where(tf.math.is_finite(lse), lse, 0)  # a row that sees no key has -inf
            total = tf.reduce_sum(tf.cast(out, tf.float32) ** 2) + tf.reduce_sum(seen)
        return out, lse, *tape.gradient(total, inputs)

    return step, inputs


@pytest.mark.parametrize(
    "options",
    [
        dict(dtype="float32"),
        dict(dtype="float16"),
        dict(dtype="bfloat16"),
        dict(dtype="float32", order=[1, 2, 3]),
        dict(dtype="float32", blocks=(2, 7)),
        dict(dtype="float32", batch=0),
    ],
    ids=str,
)
def test_the_same_bits(options):
    step, inputs = problem(**options)
    compiled = tf.function(step, jit_compile=True)
    graph = compiled.get_concrete_function(*inputs).graph
    assert {"BlocksparseAttention", "BlocksparseAttentionGrad"} <= {op.type for op in graph.get_operations()}
    plain = tf.function(step)(*inputs)
    for _ in range(2):
        for a, b in zip(compiled(*inputs), plain, strict=True):
            assert a.numpy().tobytes() == b.numpy().tobytes()


def test_inside_a_loop():
    step, inputs = problem("float32")

    def repeated(q, k, v):
        return tf.while_loop(lambda i, _: i < 3, lambda i, x: (i + 1, x + step(x, k, v)[2]), [0, q])[1]

    plain, compiled = (tf.function(repeated, jit_compile=jit)(*inputs) for jit in (None, True))
    np.testing.assert_allclose(plain, compiled, rtol=1e-5, atol=1e-5)


def test_a_plan_too_large_for_a_constant(monkeypatch):
    """A graph made elsewhere, from a SavedModel say, holds it compressed."""
    monkeypatch.setattr(op, "_LARGEST_CONSTANT", 0)
    step, inputs = problem("float32")
    plain = tf.function(step).get_concrete_function(*inputs)
    assert "BlocksparsePlan" in {op.type for op in plain.graph.get_operations()}
    compiled = tf.function(lambda *inputs: plain(*inputs), jit_compile=True)
    for a, b in zip(compiled(*inputs), plain(*inputs), strict=True):
        assert a.numpy().tobytes() == b.numpy().tobytes()


def test_a_damaged_plan_is_rejected():
    x, plan = tf.zeros([1, 64, 32]), tf.zeros([128], tf.int32)

    @tf.function(jit_compile=True)
    def attend(x):
        return (
            devices.load_kernels().blocksparse_attention(x, x, x, plan, segments=[], heads=1, scale=1.0).out
        )

    with pytest.raises(tf.errors.InvalidArgumentError, match="the plan is damaged"):
        attend(x)


def test_loaded_after_something_else_was_compiled():
    """TensorFlow makes kernels of XLA registrations once; a program may well use XLA before it uses attention."""
    program = """
        import numpy as np, tensorflow as tf
        tf.function(lambda x: x + 1, jit_compile=True)(tf.ones(3))
        from blocksparse import BlocksparseTransformer
        bst = BlocksparseTransformer(np.tri(4, dtype=bool), 16, 2)
        x = tf.random.stateless_normal([1, 64, 32], [1, 2])
        attend = lambda x: bst.attention(x, x, x)
        graph = tf.function(attend, jit_compile=True).get_concrete_function(x)
        assert any(op.type == "BlocksparseAttention" for op in graph.graph.get_operations())
        assert graph(x).numpy().tobytes() == attend(x).numpy().tobytes()
    """
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr[-3000:]


def run_traced_before(program, **environment):
    """A program in a process of its own that has `attend`, its input x and what it should give, `want`."""
    header = """
        import sys, tempfile, numpy as np, tensorflow as tf
        from blocksparse import BlocksparseTransformer
        bst = BlocksparseTransformer(np.tri(4, dtype=bool), 16, 2)
        attend = lambda x: bst.attention(x, x, x)
        x = tf.random.stateless_normal([1, 64, 32], [1, 2])
        want = attend(x).numpy().tobytes()
    """
    text = textwrap.dedent(header) + textwrap.dedent(program)
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", text]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


def test_a_function_that_ran_before():
    done = run_traced_before("""
        inner = tf.function(attend)
        inner(x)
        assert tf.function(lambda x: inner(x), jit_compile=True)(x).numpy().tobytes() == want
    """)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("jit_compile", [None, True])
def test_a_saved_model_in_a_fresh_process(tmp_path, jit_compile):
    save = """
        module = tf.Module()
        signature = [tf.TensorSpec([None, 64, 32])]
        module.f = tf.function(attend, jit_compile=%s, input_signature=signature, autograph=False)
        module.f(x)
        tf.saved_model.save(module, %r)
    """
    done = run_traced_before(save % (jit_compile, str(tmp_path)))
    assert done.returncode == 0, done.stderr[-3000:]
    load = """
        f = tf.saved_model.load(%r).f
        assert f(x).numpy().tobytes() == want
        assert tf.function(lambda x: f(x), jit_compile=True)(x).numpy().tobytes() == want
    """
    done = run_traced_before(load % str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.thorough
@pytest.mark.skipif(
    "BLOCKSPARSE_PREBUILT" in os.environ, reason="nothing is built where built kernels are given"
)
def test_the_kernels_are_built_by_the_thread_that_compiles(tmp_path):
    """In an empty cache, where the process began without them."""
    done = run_traced_before(
        """
        inner = tf.function(attend)
        inner(x)
        assert tf.function(lambda x: inner(x), jit_compile=True)(x).numpy().tobytes() == want
        """,
        BLOCKSPARSE_CACHE=str(tmp_path / "cache"),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("compiling its xla library") == 1


def test_kernels_that_cannot_be_built_are_an_error_that_says_why():
    done = run_traced_before("""
        from blocksparse.native import compiler, devices
        def refuse():
            raise compiler.BuildError("no compiler today")
        devices.xla_library = refuse
        inner = tf.function(attend)
        inner(x)
        try:
            tf.function(lambda x: inner(x), jit_compile=True)(x)
        except tf.errors.OpError as error:
            assert "cannot be compiled by XLA here: no compiler today" in error.message, error.message
        else:
            raise AssertionError
    """)
    assert done.returncode == 0, done.stderr[-3000:]
