"""The contract of recomputable: the gradient without recomputation, or an error that says what is in its way."""

import dataclasses
import random

import keras
import numpy as np
import pytest
import tensorflow as tf

import blocksparse
import sparse_attention

X = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
W = np.random.default_rng(1).standard_normal((8, 8)).astype(np.float32) / 3
DECORATORS = pytest.mark.parametrize("decorate", [sparse_attention.recomputable, blocksparse.recomputable])
TRACED = pytest.mark.parametrize("traced", [False, True], ids=["eager", "function"])


def run(step, traced):
    return (tf.function(step, autograph=False) if traced else step)()


@DECORATORS
@TRACED
def test_weights_of_a_tf_function_inside_get_their_gradient(decorate, traced):
    w, x = tf.Variable(W), tf.constant(X)
    layer = tf.function(lambda x: tf.tanh(x @ w), autograph=False)
    f = decorate(lambda x: layer(x))

    def step(recompute):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(f(x, recompute=recompute) ** 2) + 0.01 * tf.reduce_sum(w**2)
        return tape.gradient(loss, w)

    again, plain = (run(lambda r=r: step(r), traced) for r in (True, False))
    np.testing.assert_allclose(again, plain, rtol=1e-5, atol=1e-6)


@DECORATORS
@TRACED
def test_a_variable_has_its_first_value_in_the_gradient(decorate, traced):
    def step(recompute):
        f = decorate(lambda x: tf.tanh(tf.matmul(x, w)))
        x = tf.constant(X)
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            y = f(x, recompute=recompute)
        w.assign_add(tf.ones([8, 8]))
        return tape.gradient(y, [x, w])

    found = []
    for recompute in (True, False):
        w = tf.Variable(W)
        found.append(run(lambda r=recompute: step(r), traced))
    for again, plain in zip(*found):
        np.testing.assert_allclose(again, plain, rtol=1e-5, atol=1e-6)


@DECORATORS
@TRACED
def test_an_updated_variable_that_a_tf_function_reads_is_named(decorate, traced):
    w, x = tf.Variable(W, name="the_weights"), tf.constant(X)
    layer = tf.function(lambda x: tf.tanh(x @ w), autograph=False)
    f = decorate(lambda x: layer(x))

    def step():
        with tf.GradientTape() as tape:
            y = f(x, recompute=True)
        w.assign_add(tf.ones([8, 8]))
        return tape.gradient(y, w)

    with pytest.raises(
        (ValueError, tf.errors.InvalidArgumentError), match="was updated between a recomputed"
    ) as error:
        run(step, traced)
    assert "the_weights" in str(error.value)


@TRACED
def test_python_s_random_numbers_are_the_same_both_times(traced):
    f = sparse_attention.recomputable(lambda x: x * random.random() * np.random.rand())
    x = tf.constant(X)

    def step():
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = f(x, recompute=True)
        return y, tape.gradient(y, x)

    y, dx = run(step, traced)
    np.testing.assert_allclose(dx, y / x, rtol=1e-5)


@DECORATORS
@TRACED
def test_a_difference_between_the_runs_is_named(decorate, traced):
    calls = []

    def count(x):
        calls.append(1)
        return tf.tanh(x) if len(calls) % 2 else tf.sin(x)

    cases = {
        "operation 0 was Tanh the first time and Sin the second": count,
        "another structure": lambda x: calls.append(1) or (x + 1 if len(calls) % 2 else [x + 1, x]),
        "drew 0 random tensors the first time and 1|had no equal the first time": lambda x: (
            calls.append(1) or (x + 1 if len(calls) % 2 else x + tf.random.normal([]))
        ),
    }
    for text, function in cases.items():
        calls.clear()

        def step(function=function):
            x = tf.constant(X)
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = tf.nest.flatten(decorate(function)(x, recompute=True))[0]
            return tape.gradient(y, x)

        with pytest.raises(ValueError, match=text):
            run(step, traced)


@dataclasses.dataclass
class Batch:
    values: tf.Tensor


@DECORATORS
@TRACED
def test_what_is_hidden_and_what_is_left_outside_has_its_gradient(decorate, traced):
    dense = keras.layers.Dense(8, activity_regularizer=keras.regularizers.L2(0.5))
    dense.build((4, 8))
    dense.kernel.assign(W)
    left = []

    def function(batch):
        with tf.GradientTape() as tape:
            tape.watch(batch.values)
            z = tf.reduce_sum(batch.values**3)
        left.append(tf.reduce_sum(tf.sin(batch.values)))
        return dense(batch.values) * tape.gradient(z, batch.values)

    def step(recompute):
        left.clear()
        x = tf.constant(X)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = decorate(function)(Batch(x * 2), recompute=recompute)
            loss = tf.add_n([tf.reduce_sum(y), *dense.losses, *left])
        return tape.gradient(loss, [x, dense.kernel.value])

    again, plain = (run(lambda r=r: step(r), traced) for r in (True, False))
    for a, b in zip(again, plain):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_functions_run_eagerly_with_the_same_mask():
    f = sparse_attention.recomputable(lambda x: tf.nn.dropout(tf.tanh(x), 0.5))
    tf.config.run_functions_eagerly(True)
    try:

        @tf.function
        def step(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = f(x, recompute=True)
            return y, tape.gradient(y, x)

        y, dx = step(tf.constant(X))
    finally:
        tf.config.run_functions_eagerly(False)
    np.testing.assert_allclose(dx, np.where(y != 0, 2 * (1 - np.tanh(X) ** 2), 0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loop", ["range", "condition"])
def test_training_in_a_loop_inside_one_tf_function(loop):
    def train(recompute):
        w, x, table = tf.Variable(W), tf.constant(X), tf.Variable(W)
        f = sparse_attention.recomputable(lambda x: tf.tanh(x @ w) + tf.gather(table, [0, 1, 1, 2]))

        def step():
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((f(x, recompute=recompute) - 1) ** 2)
            for variable, slope in zip((w, table), tape.gradient(loss, [w, table])):
                variable.assign_sub(0.1 * tf.convert_to_tensor(slope))

        @tf.function
        def run():
            if loop == "range":
                for _ in tf.range(3):
                    step()
            else:
                for _ in range(3):
                    if tf.reduce_sum(x) > -1e9:
                        step()

        run()
        return w.numpy(), table.numpy()

    for again, plain in zip(train(True), train(False)):
        np.testing.assert_allclose(again, plain, rtol=1e-5, atol=1e-6)
        assert np.abs(plain - W).max() > 1e-3


def test_an_imported_graph_has_the_gradients_of_recomputation_and_of_the_three_steps(tmp_path):
    v1 = tf.compat.v1
    bst = blocksparse.BlocksparseTransformer(np.ones((2, 2), bool), block_size=8, heads=1)
    q = np.random.default_rng(0).standard_normal((1, 16, 8)).astype(np.float32)
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [1, 16, 8], name="x")
        y = sparse_attention.attention_impl(x, x, x, 1, "all", recompute=True)
        w = bst.masked_softmax(bst.query_key_op(x, x), scale=0.5)
        y = tf.identity(y + bst.weight_value_op(w, x), name="y")
        expected = session.run(tf.gradients(y**2, x)[0], {x: q})
        v1.train.export_meta_graph(str(tmp_path / "graph"), clear_devices=True)
    with tf.Graph().as_default() as graph, v1.Session() as session:
        v1.train.import_meta_graph(str(tmp_path / "graph"))
        x, y = (graph.get_tensor_by_name(name) for name in ("x:0", "y:0"))
        np.testing.assert_allclose(
            session.run(tf.gradients(y**2, x)[0], {x: q}), expected, rtol=1e-4, atol=1e-5
        )


def test_a_saved_model_has_the_gradient(tmp_path):
    class Module(tf.Module):
        def __init__(self):
            self.w = tf.Variable(W)

        @tf.function(input_signature=[tf.TensorSpec([4, 8])])
        def __call__(self, x):
            return sparse_attention.recomputable(lambda x: tf.nn.relu(x @ self.w))(x, recompute=True)

    module = Module()
    tf.saved_model.save(module, str(tmp_path))
    found = []
    for model in (module, tf.saved_model.load(str(tmp_path))):
        x = tf.constant(X)
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(model(x) ** 2)
        found.append(tape.gradient(loss, [x, model.w]))
    for again, first in zip(*found):
        np.testing.assert_allclose(again, first, rtol=1e-5)


@DECORATORS
@TRACED
@pytest.mark.parametrize(
    "read",
    [
        lambda x, v: tf.tanh(x @ v),
        lambda x, v: tf.tanh(v * v @ tf.transpose(x)),
        lambda x, v: tf.sin(tf.convert_to_tensor(v)) * tf.reduce_sum(x),
    ],
)
def test_a_watched_variable_that_is_not_trainable_has_its_gradient(decorate, traced, read):
    v, x = tf.Variable(W, trainable=False), tf.constant(X)

    def step(recompute):
        with tf.GradientTape() as tape:
            tape.watch(v)
            y = decorate(lambda x: read(x, v))(x, recompute=recompute)
            loss = tf.reduce_sum(y**2)
        return tape.gradient(loss, v)

    again, plain = (run(lambda r=r: step(r), traced) for r in (True, False))
    np.testing.assert_allclose(again, plain, rtol=1e-5, atol=1e-6)
    assert np.any(plain)
