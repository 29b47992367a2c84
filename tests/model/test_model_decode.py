"""Decoding one position at a time equals the full forward pass, and touches O(sqrt n) keys."""

from dataclasses import replace

import config
import numpy as np
import pytest
import tensorflow as tf
from sample import make_generator
from sparse_transformer import SparseTransformer

from sparse_attention.attention import attention_impl
from sparse_attention.decode import DecodeStep

MODES = [
    "all", "local", "strided", "chunk", "summary", "fixed", "local+strided", ("local", "strided"), ("chunk", "summary"),
    ("fixed", "all", "local+strided"),
]  # fmt: skip


def pattern(mode, **changed):
    return {
        "heads": 6,
        "attn_mode": mode,
        "local_attn_ctx": 32,
        "blocksize": 8,
        "num_verts": 2,
        "vertsize": 1,
        **changed,
    }


def decode(q, k, v, pattern):
    step = DecodeStep(q.shape[1], **pattern)

    @tf.function
    def loop(state):
        outs = tf.TensorArray(tf.float32, q.shape[1])
        for position in tf.range(q.shape[1]):
            out, state = step(q[:, position], k[:, position], v[:, position], state, position)
            outs = outs.write(position, out)
        return tf.transpose(outs.stack(), [1, 0, 2])

    return loop(step.initial(q.shape[0], q.shape[2], v.shape[2]))


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_steps_equal_the_rows_of_full_attention(mode):
    rng = np.random.default_rng(0)
    q, k, v = (tf.constant(rng.normal(size=(2, 128, width)), tf.float32) for width in (48, 48, 96))
    want = attention_impl(q, k, v, **pattern(mode))
    np.testing.assert_allclose(decode(q, k, v, pattern(mode)), want, atol=2e-6)


@pytest.mark.parametrize("mode", ["local", "chunk", "fixed"])
def test_windows_that_fit_nothing(mode):
    """A last chunk cut short, more summary columns than the chunk has queries, a window beyond the context."""
    shape = pattern(mode, heads=2, local_attn_ctx=48 if mode != "local" else 200, num_verts=3, vertsize=2)
    q = k = v = tf.random.stateless_normal([1, 112, 16], [1, 2])
    np.testing.assert_allclose(decode(q, k, v, shape), attention_impl(q, k, v, **shape), atol=2e-6)


@pytest.mark.parametrize("mode", ["local+strided", "strided", "local", ("local", "strided")], ids=str)
def test_a_step_touches_order_sqrt_n_keys(mode):
    for root in (32, 64, 128):
        step = DecodeStep(root**2, **pattern(mode, local_attn_ctx=root))
        for _, factors in step.groups:
            assert sum(factor.reach(tf.constant(root**2 - 1)).shape[-1] for factor in factors) <= 2 * root


def test_what_nobody_reaches_is_not_kept():
    capacity = {
        mode: DecodeStep(1024, **pattern(mode)).groups[0][1]
        for mode in ("local", "chunk", "summary", "fixed")
    }
    sizes = {mode: [factor.capacity for factor in factors] for mode, factors in capacity.items()}
    assert sizes == {"local": [32], "chunk": [32], "summary": [32 * 8], "fixed": [32, 32 * 8]}


LAYERS = [("all",), ("local",), ("strided", "local"), ("fixed",), ("local+strided",), (("chunk", "summary"),)]


@pytest.mark.parametrize("layer_modes", LAYERS, ids=str)
def test_generation_is_argmax_of_the_full_forward_token_for_token(layer_modes):
    base = config.load("enwik8_small")
    settings = replace(
        base,
        grid=(8, 16),
        width=32,
        heads=2,
        layers=2,
        local_attn_ctx=16,
        num_verts=2,
        layer_modes=layer_modes,
    )
    model = SparseTransformer(settings)
    rng = np.random.default_rng(1)
    for weight in model.trainable_variables:  # far from the start, where every logit is 0
        weight.assign(weight + rng.normal(size=weight.shape, scale=0.2))
    prompt = rng.integers(0, 256, (2, 10)).astype(np.int32)
    tokens = make_generator(model, 2, settings.n_ctx)(prompt, tf.constant(0.0), tf.constant(0)).numpy()
    assert (tokens[:, :10] == prompt).all()
    full = model(tokens).numpy()
    assert (tokens[:, 10:] == full.argmax(-1)[:, 10:]).all()

    decoders, states = model.decoders(2)
    before = tf.zeros(2, tf.int32)
    for position in range(20):
        logits, states = model.step(before, decoders, states, tf.constant(position))
        np.testing.assert_allclose(logits, full[:, position], rtol=1e-4, atol=1e-4)
        before = tf.constant(tokens[:, position])


def test_sampling_depends_on_seed_and_temperature():
    settings = replace(
        config.load("enwik8_small"), grid=(2, 16), width=32, heads=2, layers=1, local_attn_ctx=16, num_verts=2
    )
    generate = make_generator(SparseTransformer(settings), 1, 32)
    none = np.zeros((1, 0), np.int32)
    draws = [generate(none, tf.constant(1.0), tf.constant(seed)).numpy() for seed in (0, 0, 1)]
    assert (draws[0] == draws[1]).all() and (draws[0] != draws[2]).any()
    assert len(np.unique(draws[0])) > 10  # untrained: uniform over bytes
