"""compile_update: Keras's own update, in one program of XLA."""

from contextlib import nullcontext

import keras
import numpy as np
import pytest
import tensorflow as tf

from sparse_attention.layers import compile_update


def made():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((5,)), keras.layers.Embedding(7, 8), keras.layers.Dense(7)])


def trained(model, optimizer, compiled):
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
    if compiled:
        assert compile_update(model) is model
    tokens = np.arange(20).reshape(4, 5) % 7
    losses = model.fit(tokens, tokens, epochs=4, shuffle=False, verbose=0).history["loss"]
    return losses, model.get_weights(), [np.asarray(v) for v in model.optimizer.variables]


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: keras.optimizers.AdamW(1e-2, global_clipnorm=1.0, use_ema=True),
        lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(1e-2)),
    ],
    ids=["AdamW", "LossScaleOptimizer"],
)
def test_the_numbers_are_those_of_keras(optimizer):
    want, came = (trained(made(), optimizer(), compiled) for compiled in (False, True))
    assert want[0][-1] < want[0][0]
    for one, other in zip(tf.nest.flatten(came), tf.nest.flatten(want), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def scaled_updates(compiled, bad):
    """(weights, the optimizer's variables, scales) after seven updates, in `bad` of gradients that are not finite."""
    model = made()
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.AdamW(1e-2, global_clipnorm=1.0, use_ema=True),
        initial_scale=8,
        dynamic_growth_steps=2,
    )
    model.compile(optimizer, "mse", jit_compile=False)
    optimizer.build(model.trainable_variables)
    if compiled:
        compile_update(model)
    scales = []
    for number in range(7):
        values = [np.full(v.shape, 0.1 * (number + 1), np.float32) for v in model.trainable_variables]
        if number in bad:
            values[-1][0] = bad[number]
        optimizer.apply_gradients(zip(map(tf.constant, values), model.trainable_variables))
        scales.append(float(optimizer.dynamic_scale))
    return model.get_weights(), [np.asarray(v) for v in optimizer.variables], scales


@pytest.mark.parametrize("bad", [{}, {0: np.inf, 1: np.nan}, {3: -np.inf, 6: np.nan}], ids=str)
def test_a_loss_scale_falls_and_grows_as_keras_has_it(bad):
    want, came = (scaled_updates(compiled, bad) for compiled in (False, True))
    assert came[2] == want[2] and len(set(want[2])) > 1
    for one, other in zip(tf.nest.flatten(came), tf.nest.flatten(want), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_what_an_optimizer_has_learnt_stays():
    model = made()
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(), dynamic_growth_steps=1)
    trained(model, optimizer, compiled=True)
    kept = [np.asarray(v) for v in optimizer.variables]
    compile_update(model)
    for one, other in zip(optimizer.variables, kept, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_loss_scale_is_no_condition():
    model = made()
    model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()), "mse", jit_compile=False)
    apply, weights = type(model.optimizer).apply, model.trainable_variables
    optimizer = compile_update(model).optimizer
    gradients = [tf.zeros(v.shape) for v in weights]
    texts = []
    for update in (lambda *g: apply(optimizer, g, weights), lambda *g: optimizer.apply(list(g), weights)):
        compiled = tf.function(update, jit_compile=True, autograph=False)
        texts.append(compiled.experimental_get_compiler_ir(*gradients)(stage="hlo"))
    assert "conditional(" in texts[0] and "conditional(" not in texts[1]


def test_what_is_frozen_later_keeps_its_values():
    model = made()
    trained(model, "adam", compiled=True)
    model.layers[0].trainable = False
    kept = model.layers[0].get_weights()[0]
    tokens = np.zeros([4, 5], int)
    model.compile(
        model.optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False
    )
    model.fit(tokens, tokens, verbose=0)
    np.testing.assert_array_equal(model.layers[0].get_weights()[0], kept)


def test_it_wants_a_model_that_is_built_and_compiled():
    with pytest.raises(ValueError, match=r"has no optimizer: build it and call compile\(...\) before"):
        compile_update(made())
    model = keras.Sequential([keras.layers.Dense(2)])
    model.compile("adam", "mse")
    with pytest.raises(ValueError, match="has no weights"):
        compile_update(model)


@pytest.mark.parametrize("inside", [False, True])
def test_a_strategy_is_refused_of_one_device_too(inside):
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        model = made()
        model.compile("adam", "mse", jit_compile=False)
    with strategy.scope() if inside else nullcontext():
        with pytest.raises(
            ValueError, match="under MirroredStrategy, where an update is no one program; on one"
        ):
            compile_update(model)
