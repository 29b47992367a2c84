"""Norm, logits and loss written out are those of the layers."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from sparse_transformer.loss import Loss, Weights
from sparse_transformer.model import bits

BATCH, TIME, PADDED, WIDTH, COUNT = 3, 20, 24, 32, 16


def operands(dtype):
    shapes = [(BATCH, PADDED, WIDTH), (WIDTH,), (WIDTH,), (WIDTH, COUNT)]
    x, gamma, beta, kernel = (tf.random.stateless_normal(shape, [1, n]) for n, shape in enumerate(shapes))
    tokens = tf.random.stateless_uniform([BATCH, TIME], [3, 4], 0, COUNT, tf.int32)
    return tokens, [tf.cast(2 * x + 3, dtype), 1 + gamma, beta, tf.cast(kernel, dtype)]


def plain(dtype):
    """The model's own last layers."""
    norm = keras.layers.LayerNormalization(epsilon=1e-6, dtype=dtype)
    norm.build((None, None, WIDTH))

    def nats(weights, x, tokens):
        with keras.StatelessScope(zip(norm.weights, weights[:2])):
            logits = tf.matmul(norm(x[:, :TIME]), tf.cast(weights.kernel, x.dtype))
        return tf.reduce_mean(bits(tf.cast(logits, tf.float32), tokens)) * tf.math.log(2.0)

    return nats


def results(nats, tokens, values):
    """The loss, and a thousand times its gradients, as a loss scale has them."""
    with tf.GradientTape() as tape:
        tape.watch(values)
        loss = nats(Weights(*values[1:]), values[0], tokens)
        scaled = 1000 * loss
    return [np.float32(each) for each in (loss, *tape.gradient(scaled, values))]


@pytest.mark.parametrize("xla", [False, True])
@pytest.mark.parametrize(("dtype", "policy"), [("float32", "float32"), ("float16", "mixed_float16")])
def test_loss_and_gradients_are_those_of_the_layers(dtype, policy, xla):
    tokens, exact = operands("float32")
    wanted = results(plain("float32"), tokens, exact)
    _, values = operands(dtype)
    came, usual = results(Loss(1e-6, xla), tokens, values), results(plain(policy), tokens, values)
    for one, other, want in zip(came, usual, wanted, strict=True):
        rounding = max(1e-5, np.finfo(dtype).eps) * np.abs(want).max()
        assert np.abs(one - want).max() < 2 * np.abs(other - want).max() + rounding


def test_positions_behind_the_tokens_have_no_gradient():
    tokens, values = operands("float32")
    assert not results(Loss(1e-6, False), tokens, values)[1][:, TIME:].any()
