"""recomputable gives the same values and gradients in every mode of execution, and really computes again."""

import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from sparse_attention import attention_impl, recomputable

ROOT = Path(__file__).parents[2]
MODES = {
    "eager": lambda f: f,
    "function": lambda f: tf.function(f, autograph=False),
    "jit": lambda f: tf.function(f, autograph=False, jit_compile=True),
}


@pytest.fixture
def x():
    return tf.constant(np.random.default_rng(0).standard_normal((4, 8)), tf.float32)


def gradients(f, sources, mode="eager"):
    """The results of f() and d sum(y^2) of all floating ones."""

    def step(*xs):
        with tf.GradientTape() as tape:
            tape.watch(xs)
            out = f(*xs)
            floats = [y for y in tf.nest.flatten(out) if y is not None and y.dtype.is_floating]
            loss = tf.add_n([tf.reduce_sum(y**2) for y in floats])
        variables = [v for v in sources if isinstance(v, tf.Variable)]
        return out, tape.gradient(loss, [*xs, *variables])

    tensors = [s for s in sources if not isinstance(s, tf.Variable)]
    return MODES[mode](step)(*tensors)


def close(got, want, tolerance=1e-5):
    for a, b in zip(tf.nest.flatten(got), tf.nest.flatten(want), strict=True):
        if a is not None:
            a, b = tf.convert_to_tensor(a), tf.convert_to_tensor(b)
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("mode", MODES)
def test_several_outputs_captured_variables_and_arguments_that_are_no_tensors(x, mode):
    w = tf.Variable(tf.random.stateless_normal((8, 8), (1, 2)))
    table = tf.Variable(tf.random.stateless_normal((5, 8), (3, 4)))
    calls = []

    @recomputable("named, as OpenAI does")
    def f(x, pair, *, power, name="sin"):
        calls.append(name)
        h = tf.matmul(x, w) + tf.gather(table, [0, 2, 2, 4])
        return {"h": getattr(tf, name)(h) ** power, "pair": (pair[0] * h, tf.argmax(h, 1)), "none": None}

    def run(recompute):
        def g(x, y):
            return f(x, [y, 3], power=2, name="cos", recompute=recompute)

        return gradients(g, [x, tf.exp(x), w, table], mode)

    got = run(True)
    assert calls == ["cos", "cos"]  # forward, and again for the gradient
    close(got, run(False))


@pytest.mark.parametrize("mode", ["eager", "function"])
@pytest.mark.parametrize("draw", [tf.nn.dropout, lambda x, rate: tf.nn.dropout(x, rate, seed=7)])
def test_dropout_has_the_same_mask_both_times(x, mode, draw):
    @recomputable
    def f(x):
        return draw(x + 9.0, 0.5), draw(x, 0.5)

    x = tf.tile(x, [50, 8])
    (a, b), (dx,) = gradients(lambda x: f(x, recompute=True), [x], mode)
    first, second = (np.where(y == 0, 0.0, 2.0) for y in (a, b))
    np.testing.assert_allclose(dx, 2 * a * first + 2 * b * second, rtol=1e-5)
    assert 0.3 < (first == 0).mean() < 0.7


def test_a_jitted_step_has_the_same_mask_both_times(x):
    @recomputable
    def f(x):
        return tf.nn.dropout(x, 0.5)

    y, (dx,) = gradients(lambda x: f(x, recompute=True), [tf.tile(x, [9, 9])], "jit")
    np.testing.assert_allclose(dx, 2 * y * 2)
    assert 0.3 < (y == 0).numpy().mean() < 0.7


def test_a_generator_draws_once(x):
    generator = tf.random.Generator.from_seed(1)

    @recomputable
    def f(x):
        return x * generator.uniform(tf.shape(x))

    for mode in ("eager", "function"):
        y, (dx,) = gradients(lambda x: f(x, recompute=True), [x], mode)
        np.testing.assert_allclose(dx, 2 * y * (y / x), rtol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_recomputable_functions_nest(x, mode):
    w = tf.Variable(tf.random.stateless_normal((8, 8), (1, 2)))

    @recomputable
    def inner(x):
        return tf.tanh(tf.matmul(x, w))

    @recomputable
    def outer(x, recompute_inner):
        return tf.sin(inner(x, recompute=recompute_inner)) + x

    results = [
        gradients(lambda x, a=a, b=b: outer(outer(x, a, recompute=b), a, recompute=b), [x, w], mode)
        for a, b in ((False, False), (True, True), (True, False))
    ]
    close(results[1], results[0])
    close(results[2], results[0])


def test_captured_tensors_of_a_graph_get_their_gradients(x):
    @tf.function
    def step(x, recompute):
        with tf.GradientTape() as tape:
            tape.watch(x)
            scale = tf.exp(x)
            f = recomputable(lambda y: tf.sin(y) * scale)
            loss = tf.reduce_sum(f(x * 2, recompute=recompute) ** 2)
        return tape.gradient(loss, x)

    np.testing.assert_allclose(step(x, True), step(x, False), rtol=1e-5)


@pytest.mark.parametrize("persistent", [False, True])
def test_the_gradient_of_a_function_taken_outside_it(x, persistent):
    w = tf.Variable(tf.random.stateless_normal((8, 8), (1, 2)))
    f = recomputable(lambda x: tf.nn.dropout(tf.matmul(x, w) + 1.0, 0.5))
    step = tf.function(lambda x: f(x, recompute=True))
    with tf.GradientTape(persistent=persistent) as tape:
        tape.watch(x)
        y = step(x)
        loss = tf.reduce_sum(y**2)
    dx, dw = tape.gradient(loss, [x, w])
    mask = np.where(y == 0, 0.0, 2.0)
    dy = (2 * y * mask).numpy()
    np.testing.assert_allclose(dx, dy @ w.numpy().T, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(dw, x.numpy().T @ dy, rtol=1e-4, atol=1e-4)


def test_keras_layers_and_half_precision(x):
    layers = [keras.layers.LayerNormalization(), keras.layers.Dense(8, activation="gelu")]
    for layer in layers:
        layer.build((None, 8))
    variables = [v.value for layer in layers for v in layer.trainable_variables]

    @recomputable
    def f(x):
        return tf.cast(layers[1](layers[0](x)), tf.float16) * tf.cast(x, tf.float16)

    for mode in ("eager", "function"):
        got, want = (
            gradients(lambda x, r=r: f(x, recompute=r), [x, *variables], mode) for r in (True, False)
        )
        close(got, want, 4e-3)  # grappler joins other operations of either: float16 may round the other way
        assert all(g is not None for g in got[1])


def test_two_strategies_of_one_device_each(x):
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        w = tf.Variable(tf.random.stateless_normal((8, 8), (1, 2)))
    f = recomputable(lambda x: tf.tanh(tf.matmul(x, w)))

    def step(recompute):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(f(x, recompute=recompute) ** 2)
        return tape.gradient(loss, w)

    run = tf.function(lambda r: strategy.run(step, (r,)))
    np.testing.assert_allclose(run(True), run(False), rtol=1e-5)


def test_the_same_function_with_other_shapes_dtypes_and_arguments():
    @recomputable
    def f(x, power):
        return x**power

    for shape in ((12, 3), (1, 23), (1, 2, 3)):  # OpenAI's cache took these for one
        for dtype in (tf.float32, tf.float16):
            for power in (2, 3):
                ones = tf.ones(shape, dtype)
                _, (dx,) = gradients(lambda x, p=power: f(x, p, recompute=True), [ones])
                assert dx.dtype == dtype and dx.shape == shape
                np.testing.assert_allclose(dx, 2 * power * ones)


def test_the_second_pass_computes_with_the_same_bits():
    x = tf.constant([-0.0, 0.0, 1e-42, -1.0, float("inf")])
    f = recomputable(lambda x: 1 / x)
    for mode in ("eager", "function"):
        got, want = (gradients(lambda x, r=r: f(x, recompute=r), [x], mode) for r in (True, False))
        for a, b in zip(tf.nest.flatten(got), tf.nest.flatten(want)):
            np.testing.assert_array_equal(a.numpy().view(np.int32), b.numpy().view(np.int32))


def test_a_second_differentiation_says_that_there_is_none(x):
    def second(recompute):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                loss = tf.reduce_sum(
                    attention_impl(x[None], x[None], x[None], 1, "all", recompute=recompute) ** 2
                )
            dx = inner.gradient(loss, x)
        return outer.gradient(dx, x)

    assert np.isfinite(second(False).numpy()).all()
    with pytest.raises(LookupError, match="cannot be differentiated again; call the function with"):
        second(True)


def test_forward_mode_says_that_there_is_none(x):
    f = recomputable(tf.tanh)
    with tf.autodiff.ForwardAccumulator(x, tf.ones_like(x)) as forward:
        y = f(x)
        with pytest.raises(LookupError, match="forward-mode"):
            f(x, recompute=True)
    np.testing.assert_allclose(forward.jvp(y), 1 - y**2, rtol=1e-5)


def test_what_cannot_be_computed_twice_is_refused(x):
    counter = tf.Variable(0.0)

    @recomputable
    def counts(x):
        counter.assign_add(1.0)
        return x * counter

    @recomputable
    def draws_inside(x):
        return tf.cond(tf.reduce_sum(x) > 0, lambda: tf.nn.dropout(x, 0.5), lambda: x)

    with pytest.raises(
        ValueError, match="made or assigned a variable, which the backward pass would do again"
    ):
        counts(x, recompute=True)
    with pytest.raises(ValueError, match="inside control flow"):
        tf.function(lambda x: draws_inside(x, recompute=True))(x)
    assert counts(x, recompute=False) is not None


def test_without_recompute_nothing_is_wrapped(x):
    f = recomputable(lambda x: x)
    assert f(x) is x and f(x, recompute=False) is x


def test_tensorflow_1_graphs():
    script = ROOT / "tests" / "attention" / "tf1_graph_cases.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == ["resource", "True", "reference", "False"], done.stdout
