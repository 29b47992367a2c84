"""Recomputed functions with conditions and loops of TensorFlow 1: repeated, or refused where the second run differs."""

import numpy as np
import pytest
import tensorflow as tf

import blocksparse
import sparse_attention

tf1 = tf.compat.v1
X = np.linspace(-1, 1, 12).reshape(3, 4).astype(np.float32)


@pytest.fixture(autouse=True)
def loops_of_tensorflow_1():
    tf1.disable_control_flow_v2()
    yield
    tf1.enable_control_flow_v2()


def turns(step):
    return lambda h: tf.while_loop(lambda i, _: i < 2, lambda i, h: (i + 1, step(h)), (0, h))[1]


def either(then, otherwise):
    return lambda h: tf.cond(tf.reduce_sum(h) > 0.1, lambda: then(h), lambda: otherwise(h))


def same(h):
    return h


def with_an_array(h):
    array = tf.TensorArray(tf.float32, size=3)
    array = tf.while_loop(
        lambda i, _: i < 3, lambda i, rows: (i + 1, rows.write(i, tf.sin(h[i]))), (0, array)
    )[1]
    return array.stack() * h


def rows(h):
    return tf.map_fn(lambda row: row * tf.reduce_sum(row), h)


REPEATED = {
    "a branch that gives what it got": either(same, tf.sin),
    "a condition in a loop": turns(either(tf.sin, tf.tanh)),
    "a loop in a condition": either(turns(tf.sin), same),
    "a loop in a loop": turns(turns(tf.sin)),
    "two conditions on one": lambda h: either(tf.sin, tf.cos)(h) + either(tf.tanh, tf.exp)(h),
    "rows of rows": lambda h: rows(rows(h)),
    "running sums": lambda h: tf.scan(lambda total, row: total + tf.sin(row), h),
    "an array": with_an_array,
    "a loop of unknown length": lambda h: tf.while_loop(
        lambda h: tf.reduce_sum(h) < 5, lambda h: [h + 1], [h]
    )[0],
    "a tf.function after a loop": lambda h: tf.function(tf.sin)(turns(tf.tanh)(h)),
    "a branch without a gradient": either(tf.stop_gradient, tf.sin),
}


def gradient(function, decorate, recompute, around=same):
    """The gradient of the decorated function, in a graph of TensorFlow 1."""
    with tf.Graph().as_default(), tf1.Session() as session:
        x = tf.constant(X)
        f = decorate(function)
        y = (
            around(lambda h: f(h, recompute=recompute))(x)
            if around is not same
            else f(x, recompute=recompute)
        )
        return session.run(tf.gradients(tf.reduce_sum(y**2), x)[0])


@pytest.mark.parametrize("name", REPEATED)
def test_repeated(name):
    ours, plain = (
        gradient(REPEATED[name], sparse_attention.recomputable, recompute) for recompute in (True, False)
    )
    np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["a loop in a condition", "rows of rows"])
def test_repeated_inside_a_condition(name):
    def around(f):
        return lambda x: tf.cond(tf.reduce_sum(x) < 100, lambda: f(x), lambda: x)

    ours, plain = (
        gradient(REPEATED[name], sparse_attention.recomputable, recompute, around)
        for recompute in (True, False)
    )
    np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-5)


class Count:
    """What a function's code depends on: another value each time it runs."""

    def __init__(self):
        self.runs = 0

    def odd(self):
        self.runs += 1
        return self.runs % 2


def counting(place, count):
    if place == "before":
        return lambda h: turns(tf.sin)(h * 2 if count.odd() else tf.exp(h))
    if place == "after":
        return lambda h: turns(tf.sin)(h) * (2.0 if count.odd() else 3.0)
    if place == "beside":
        return lambda h: turns(tf.sin)(h) * (h if count.odd() else 1 - h)
    if place == "inside":
        return turns(lambda h: tf.sin(h) if count.odd() else tf.tanh(h))
    if place == "in a branch":
        return either(lambda h: tf.sin(h) if count.odd() else tf.tanh(h), same)
    if place == "the condition":
        return lambda h: tf.cond(
            tf.reduce_sum(h if count.odd() else tf.abs(h)) > 0.1, lambda: h * 2, lambda: tf.sin(h)
        )
    if place == "before rows":
        return lambda h: rows(h * 2 if count.odd() else tf.sin(h))
    return lambda h: turns(tf.sin)(h) if count.odd() else rows(h)


@pytest.mark.parametrize(
    "place",
    ["before", "after", "beside", "inside", "in a branch", "the condition", "before rows", "which of two"],
)
def test_a_second_run_that_differs_is_refused(place):
    decorate = blocksparse.recomputable if place in ("after", "inside") else sparse_attention.recomputable
    with pytest.raises(ValueError, match="did not do the same when it ran again for its gradient"):
        gradient(counting(place, Count()), decorate, True)
