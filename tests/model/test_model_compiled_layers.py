"""compile_layers: what stands around the blocks, each layer a program of XLA, in training alone."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from sparse_attention.layers import SparseTransformerBlock, compile_layers, compile_update

TOKENS = np.arange(64).reshape(4, 16) % 7


def made(time=16):
    keras.utils.set_random_seed(0)
    block = SparseTransformerBlock(2, "local", 4, 8)
    around = [keras.layers.Embedding(7, 16), block, keras.layers.LayerNormalization(), keras.layers.Dense(7)]
    return keras.Sequential([keras.Input((time,), dtype="int32"), *around])


def trained(model, *compilers):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, jit_compile=False)
    for each in compilers:
        assert each(model) is model
    losses = model.fit(TOKENS, TOKENS, epochs=3, shuffle=False, verbose=0).history["loss"]
    return losses, model.get_weights(), model.predict(TOKENS, verbose=0)


def test_the_numbers_are_those_of_keras():
    want, came = trained(made()), trained(made(), compile_layers, compile_update)
    for one, other in zip(tf.nest.flatten(came), tf.nest.flatten(want), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def compiled_calls(model, tokens, tape):
    """The layers' functions that a call of the model hands to XLA."""

    @tf.function
    def run(tokens):
        if not tape:
            return model(tokens)
        with tf.GradientTape() as recorder:
            y = model(tokens, training=True)
        return recorder.gradient(y, model.trainable_variables)

    graph = run.get_concrete_function(tf.TensorSpec(tokens, tf.int32)).graph
    calls = [op for op in graph.get_operations() if "PartitionedCall" in op.type]
    return sum(bool(op.get_attr("_XlaMustCompile")) for op in calls)


@pytest.mark.parametrize(
    "tape, time, wanted",
    [(True, 16, 6), (False, 16, 0), (True, None, 0)],
    ids=["training", "else", "any time"],
)
def test_a_layer_and_its_gradient_are_programs_in_training_alone(tape, time, wanted):
    model = compile_layers(compile_layers(made(time)))  # a second time changes nothing
    assert compiled_calls(model, [None, time], tape) == wanted


def test_a_change_of_the_loss_or_of_a_layer_counts():
    model = compile_layers(made())
    trained(model)
    model.layers[2].epsilon = 1e3
    want = np.mean(model(TOKENS))
    model.compile("sgd", lambda wanted, came: came, jit_compile=False)
    np.testing.assert_allclose(model.train_on_batch(TOKENS, TOKENS), want, rtol=1e-5)


def test_it_wants_layers():
    with pytest.raises(ValueError, match="has no layers: build it before compile_layers"):
        compile_layers(keras.Sequential())
