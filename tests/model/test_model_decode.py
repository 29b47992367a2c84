"""Decoding one position at a time equals the full forward pass, and touches O(sqrt n) keys."""

import time
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from sparse_transformer import config
from sparse_transformer.generation import make_generator
from sparse_transformer.model import SparseTransformer

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


def decode(q, k, v, pattern, jit=False, times=1):
    batch, n_ctx, key_width = q.shape
    step = DecodeStep(batch, n_ctx, key_width, v.shape[2], **pattern)

    @tf.function(jit_compile=jit)
    def loop():
        outs = tf.TensorArray(tf.float32, n_ctx)
        for position in tf.range(n_ctx):
            out = step(q[:, position], k[:, position], v[:, position], position)
            outs = outs.write(position, out)
        return tf.transpose(outs.stack(), [1, 0, 2])

    return [loop() for _ in range(times)][-1]


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
        step = DecodeStep(1, root**2, 6, 6, **pattern(mode, local_attn_ctx=root))
        for _, caches in step.groups:
            assert sum(factor.reach(tf.constant(root**2 - 1)).shape[-1] for factor, *_ in caches) <= 2 * root


def test_what_nobody_reaches_is_not_kept():
    groups = {
        mode: DecodeStep(1, 1024, 6, 6, **pattern(mode)).groups
        for mode in ("local", "chunk", "summary", "fixed")
    }
    sizes = {mode: [factor.capacity for factor, *_ in caches] for mode, [(_, caches)] in groups.items()}
    assert sizes == {"local": [32], "chunk": [32], "summary": [32 * 8], "fixed": [32, 32 * 8]}


def test_the_caches_change_in_place():
    """A copy of the cache a step would cost O(n): 16 times the positions, not 16 times the time."""

    def seconds(n_ctx):
        step = DecodeStep(1, n_ctx, 256, 256, **pattern("strided", heads=4, local_attn_ctx=n_ctx // 64))
        x = tf.ones([1, 256])

        @tf.function
        def loop(steps):
            total = 0.0
            for position in tf.range(steps):
                total += step(x, x, x, position)[0, 0]
            return total

        loop(tf.constant(1))
        best = np.inf
        for _ in range(3):
            began = time.perf_counter()
            loop(tf.constant(100)).numpy()
            best = min(best, time.perf_counter() - began)
        return best

    assert seconds(16 * 8192) < 4 * seconds(8192)


def test_a_new_sequence_sees_nothing_of_the_last():
    q = k = v = tf.random.stateless_normal([2, 64, 48], [1, 2])
    np.testing.assert_array_equal(
        decode(q, k, v, pattern("fixed"), times=2), decode(q, k, v, pattern("fixed"))
    )


def test_nan_stays_with_the_queries_that_see_it():
    q, v = tf.random.stateless_normal([2, 1, 128, 48], [1, 2])
    bad = np.zeros((1, 128, 48), np.float32)
    bad[0, 40] = np.nan
    want = attention_impl(q, q, v, **pattern("fixed"))
    for k, w in ((q + bad, v), (q, v + bad)):
        hit = np.isnan(decode(q, k, w, pattern("fixed")))
        sees = np.isnan(attention_impl(q, q + bad, v, **pattern("fixed")))
        assert (hit == sees).all() and hit.any() and not hit.all()
        np.testing.assert_allclose(decode(q, k, w, pattern("fixed"))[~hit], want[~hit], atol=2e-6)


def test_under_xla():
    q = k = v = tf.random.stateless_normal([1, 64, 48], [1, 2])
    want = attention_impl(q, k, v, **pattern("fixed"))
    np.testing.assert_allclose(decode(q, k, v, pattern("fixed"), jit=True), want, atol=2e-6)


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

    decoders = model.decoders(2)
    before = tf.zeros(2, tf.int32)
    for position in range(20):
        logits = model.step(before, decoders, tf.constant(position))
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
