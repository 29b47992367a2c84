"""Recomputation inside loops and conditions, and errors that keep their type under tf.function."""

import numpy as np
import pytest
import tensorflow as tf

from sparse_attention import blocksparse_attention_impl, recomputable, shape_list, split_heads


@pytest.fixture
def w():
    return tf.Variable(np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32) / 4)


def looped(f, x, recompute):
    return tf.while_loop(lambda i, _: i < 3, lambda i, x: (i + 1, f(x, recompute=recompute)), (0, x))[1]


def chosen(f, x, recompute):
    return tf.cond(tf.reduce_sum(x) > -1e9, lambda: f(x, recompute=recompute), lambda: x)


def nested(f, x, recompute):
    return looped(lambda x, recompute: chosen(f, x, recompute), x, recompute)


def gradients(control, x, w, captured):
    """With and without recomputation; the function takes w's value from outside, or w itself."""

    @tf.function(autograph=False)
    def gradients(recompute):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = w if captured else tf.convert_to_tensor(w)
            y = tf.reduce_sum(control(recomputable(lambda x: tf.tanh(x @ value)), x, recompute) ** 2)
        return tape.gradient(y, [x, w])

    return gradients(True), gradients(False)


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("control", [looped, chosen, nested])
def test_recomputation_in_control_flow(w, control, captured):
    for ours, plain in zip(*gradients(control, tf.ones([4, 8]), w, captured)):
        np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-6)
        assert np.any(plain)


def test_recomputation_in_a_graph_s_control_flow():
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        x = tf.compat.v1.placeholder(tf.float32, [4, 8])
        w = tf.compat.v1.get_variable("w", [8, 8], use_resource=True)
        f = recomputable(lambda x: tf.tanh(x @ w))
        found = [
            tf.gradients(chosen(f, looped(f, x, recompute), recompute), [x, w]) for recompute in (True, False)
        ]
        session.run(tf.compat.v1.global_variables_initializer())
        ours, plain = session.run(found, {x: np.ones((4, 8))})
    for a, b in zip(ours, plain):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_recomputing_a_look_up_in_a_table(w):
    """Its gradient comes as slices."""
    look_up = recomputable(lambda i: tf.gather(w, i) ** 2)
    i = tf.constant([1, 5, 1])

    @tf.function
    def gradient(recompute):
        with tf.GradientTape() as tape:
            y = look_up(i, recompute=recompute)
        return tf.convert_to_tensor(tape.gradient(y, w))

    np.testing.assert_array_equal(gradient(True), gradient(False))


def test_a_second_derivative_is_a_lookup_error_under_tf_function_too():
    cube = recomputable(lambda x: x**3)

    @tf.function
    def second(function, x):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                y = function(x)
            first = inner.gradient(y, x)
        return outer.gradient(first, x)

    with pytest.raises(LookupError, match="no second derivative"):
        second(lambda x: blocksparse_attention_impl(x, x, x, 1, "all", blocksize=8), tf.ones([1, 16, 8]))
    with pytest.raises(LookupError, match="cannot be differentiated again"):
        second(lambda x: cube(x, recompute=True), tf.ones([3]))


def test_arrays_are_taken_as_tensors():
    x = np.ones((2, 16, 8), np.float32)
    assert shape_list(x) == [2, 16, 8] and split_heads(x, 4).shape == (2, 4, 16, 2)
    assert blocksparse_attention_impl(x, x, x.tolist(), 1, "all", blocksize=8).shape == x.shape
