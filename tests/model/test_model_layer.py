"""SparseSelfAttention as a Keras layer: configuration, saving, fit."""

from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
from sparse_transformer import config
from sparse_transformer.model import SparseTransformer

from sparse_attention.attention import attention_impl
from sparse_attention.layers import SparseSelfAttention

PATTERN = {"heads": 2, "attn_mode": ("local", "strided"), "local_attn_ctx": 16, "blocksize": 8}


def test_layer_is_attention_between_linear_maps():
    layer = SparseSelfAttention(**PATTERN, key_width=8)
    x = tf.random.stateless_normal([2, 128, 16], [1, 2])
    y = layer(x)
    a = attention_impl(layer.query(x), layer.key(x), layer.value(x), **layer.pattern)
    np.testing.assert_allclose(y, layer.project(a), rtol=1e-5, atol=1e-6)
    dense = SparseSelfAttention.from_config({**layer.get_config(), "blocksparse": False})
    dense.build(x.shape)
    dense.set_weights(layer.get_weights())
    np.testing.assert_allclose(dense(x), y, rtol=1e-5, atol=1e-6)


def test_saved_and_loaded(tmp_path):
    model = keras.Sequential([keras.Input((128, 16)), SparseSelfAttention(**PATTERN)])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.layers[0].pattern == model.layers[0].pattern
    x = np.random.default_rng(0).normal(size=(3, 128, 16)).astype(np.float32)
    np.testing.assert_array_equal(loaded(x), model(x))


def test_mixed_precision():
    layer = SparseSelfAttention(**PATTERN, dtype="mixed_float16")
    y = layer(tf.zeros([1, 128, 16]))
    assert y.dtype == tf.float16 and layer.query.kernel.dtype == "float32"


@pytest.mark.parametrize("widths", [(15, None), (16, 9)])
def test_heads_must_divide_the_widths(widths):
    width, key_width = widths
    with pytest.raises(ValueError, match=r"heads=2 does not divide .*; nearest width: (16|8)"):
        SparseSelfAttention(**PATTERN, key_width=key_width).build((None, 128, width))


@pytest.mark.parametrize("jit", [False, True])
def test_compile_and_fit(jit):
    """With dropout, whose step is the optimizer's; on a GPU machine Keras turns XLA on by itself."""
    settings = replace(
        config.load("enwik8_small"),
        grid=(4, 16),
        width=32,
        heads=2,
        layers=1,
        local_attn_ctx=16,
        num_verts=2,
        dropout=0.1,
    )
    keras.utils.set_random_seed(0)
    model = SparseTransformer(settings)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(3e-3), loss, jit_compile=jit)
    tokens = np.tile(np.arange(64, dtype=np.int32), (16, 1))
    losses = model.fit(tokens, tokens, batch_size=4, epochs=5, verbose=0).history["loss"]
    assert losses[-1] < 0.8 * losses[0]
