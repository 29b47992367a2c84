"""Decoding one position at a time equals the full forward pass, and touches O(sqrt n) keys."""

import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from sparse_transformer import config, stepping
from sparse_transformer.generation import make_generator
from sparse_transformer.model import SparseTransformer

from sparse_attention.attention import attention_impl, blocksparse_attention_impl
from sparse_attention.decode import DecodeStep
from sparse_attention.layers import SparseSelfAttention

MODES = [
    "all", "local", "strided", "chunk", "summary", "fixed", "local+strided", ("local", "strided"), ("chunk", "summary"),
    ("fixed", "all", "local+strided"), "previous", "previous+summary", ("strided+previous", "chunk+previous"),
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


@pytest.mark.parametrize("kv_heads", [1, 2, 3])
@pytest.mark.parametrize(
    "mode", ["local", "fixed", "local+strided", ("local", "strided"), ("fixed", "all", "chunk")], ids=str
)
def test_heads_that_share_keys(mode, kv_heads):
    rng, shape = np.random.default_rng(0), pattern(mode, kv_heads=kv_heads)
    q, k, v = (tf.constant(rng.normal(size=(2, 64, 8 * n)), tf.float32) for n in (6, kv_heads, 2 * kv_heads))
    step = DecodeStep(2, 64, 48, 96, **shape)
    want = attention_impl(q, k, v, **shape)
    step.prefill(k[:, :40], v[:, :40])
    run = tf.function(lambda *x: step(*x))
    for position in (40, 41, 63):
        step.prefill(k[:, :position], v[:, :position])
        out = run(q[:, position], k[:, position], v[:, position], tf.constant(position))
        np.testing.assert_allclose(out, want[:, position], atol=2e-6)


@pytest.mark.parametrize(
    ("mode", "kv_heads", "caches"),
    [("local", 2, [2]), ("fixed", 2, [2, 2]), (("local", "strided"), 2, [1, 1, 1, 1]), ("fixed", 6, [6])],
    ids=str,
)
def test_heads_with_one_key_head_and_one_mode_share_a_cache(mode, kv_heads, caches):
    step = DecodeStep(1, 64, 48, 96, **pattern(mode, kv_heads=kv_heads))
    assert [len(group.keys) for group in step.groups] == caches
    rows = sum(group.slots * len(group.keys) for group in step.groups)
    assert sum(cache.shape[0] for cache in step.caches) == rows


@pytest.mark.parametrize("mode", ["local", "chunk", "fixed", "previous", "chunk+previous"])
def test_windows_that_fit_nothing(mode):
    """A last chunk cut short, more summary columns than the chunk has queries, a window beyond the context."""
    shape = pattern(mode, heads=2, local_attn_ctx=48 if mode != "local" else 200, num_verts=3, vertsize=2)
    q = k = v = tf.random.stateless_normal([1, 112, 16], [1, 2])
    np.testing.assert_allclose(decode(q, k, v, shape), attention_impl(q, k, v, **shape), atol=2e-6)


@pytest.mark.parametrize("local_attn_ctx", [65, 2**31, sys.maxsize])
@pytest.mark.parametrize("mode", [*MODES, "local+previous"])
def test_no_context_is_too_short_for_a_window(mode, local_attn_ctx):
    """2^31 is no int32, and what is longer than a context needs no more room than it."""
    shape = pattern(mode, heads=2, local_attn_ctx=local_attn_ctx)
    q = k = v = tf.random.stateless_normal([1, 64, 16], [1, 2])
    dense = attention_impl(q, k, v, **shape)
    np.testing.assert_allclose(blocksparse_attention_impl(q, k, v, **shape), dense, atol=2e-6)
    if mode == "prefix":
        return
    step = DecodeStep(1, 64, 16, 16, **shape)
    assert max(group.slots for group in step.groups) <= 64 * 3 + shape["vertsize"] * shape["blocksize"] + 1
    step.prefill(k[:, :60], v[:, :60])
    np.testing.assert_allclose(step(q[:, 60], k[:, 60], v[:, 60], 60), dense[:, 60], atol=2e-6)


@pytest.mark.parametrize("mode", ["local+strided", "strided", "local", ("local", "strided")], ids=str)
def test_a_step_touches_order_sqrt_n_keys(mode):
    for root in (32, 64, 128):
        step = DecodeStep(1, root**2, 6, 6, **pattern(mode, local_attn_ctx=root))
        for group in step.groups:
            assert sum(factor.cache.length for factor in group.factors) <= 2 * root


def test_what_nobody_reaches_is_not_kept():
    groups = {
        mode: DecodeStep(1, 1024, 6, 6, **pattern(mode)).groups
        for mode in ("local", "chunk", "summary", "fixed")
    }
    sizes = {mode: [factor.cache.capacity for factor in own.factors] for mode, [own] in groups.items()}
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


@pytest.mark.parametrize(
    ("layer_modes", "kv_heads"), [*((modes, None) for modes in LAYERS), (("strided", "local"), 1)], ids=str
)
def test_generation_is_argmax_of_the_full_forward_token_for_token(layer_modes, kv_heads):
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
        kv_heads=kv_heads,
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

    decoders, weights = model.decoders(2), stepping.prepare(model)
    before = tf.zeros(2, tf.int32)
    for position in range(20):
        logits = stepping.step(model, weights, decoders, before, tf.constant(position))
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


ROW = np.ones((2, 8), np.float32)


@pytest.mark.parametrize(
    "arguments, error, text",
    [
        (dict(position=16), ValueError, r"position=16 does not exist; this DecodeStep has positions 0 to 15"),
        (dict(position=-1), ValueError, r"position=-1 does not exist"),
        (dict(position=np.int64(99)), ValueError, r"position=99 does not exist"),
        (
            dict(position=1.5),
            TypeError,
            r"position is 1.5; it has to be an integer, or an integer tensor that is a scalar or \[batch\]",
        ),
        (dict(position=True), TypeError, r"position is True; it has to be an integer"),
        (
            dict(position=[1, 2, 3]),
            ValueError,
            r"position has shape \(3,\); it has to be a scalar, or one number a row",
        ),
        (dict(position=[1, 16]), ValueError, r"position=\[ 1 16\] does not exist"),
        (
            dict(q=ROW[:1]),
            ValueError,
            r"q has shape \(1, 8\); this DecodeStep takes \[batch, width\] = \[2, 8\]",
        ),
        (dict(v=ROW[:, :4]), ValueError, r"v has shape \(2, 4\); this DecodeStep takes"),
        (
            dict(k=ROW.astype(np.int32)),
            TypeError,
            r"k has dtype int32; it has to be of a float dtype: cast it",
        ),
    ],
)
def test_a_call_that_does_not_fit_is_refused_in_words(arguments, error, text):
    step = DecodeStep(2, 16, 8, 8, 2, "local", 4)
    with pytest.raises(error, match=text):
        step(**dict(q=ROW, k=ROW, v=ROW, position=0) | arguments)


def test_what_means_no_step_is_refused_and_an_empty_prompt_is_none():
    with pytest.raises(TypeError, match="dtype is int32; keys and values want a float dtype"):
        DecodeStep(2, 16, 8, 8, 2, "local", 4, dtype=tf.int32)
    with pytest.raises(ValueError, match=r"has no weights yet: call it, or its build"):
        SparseSelfAttention(2).decode_step(1, 16)
    step = DecodeStep(2, 16, 8, 8, 2, "local", 4)
    with pytest.raises(
        ValueError, match=r"k has shape \(2, 8\); this DecodeStep takes \[batch, time, width\]"
    ):
        step.prefill(ROW, ROW)
    empty = np.zeros((2, 0, 8), np.float32)
    step.prefill(empty, empty)
    np.testing.assert_allclose(step(ROW, ROW, ROW, 0), ROW, atol=1e-6)


@pytest.mark.parametrize(
    "position", [3, np.int64(3), tf.constant(3), tf.constant(3, tf.int64), np.array(3, np.uint8)]
)
def test_every_kind_of_integer_is_a_position(position):
    steps = DecodeStep(2, 300, 8, 8, 2, "local", 4), DecodeStep(2, 300, 8, 8, 2, "local", 4)
    for step in steps:
        step.prefill(*[np.ones((2, 3, 8), np.float32)] * 2)
    np.testing.assert_array_equal(steps[0](ROW, ROW, ROW, position), steps[1](ROW, ROW, ROW, 3))


@pytest.mark.parametrize("way", ["eager", "graph", "compiled"])
def test_positions_come_in_order(way):
    """Else a query would see zeros for keys that were never fed, or other keys in the places of those that are gone."""
    rows = np.random.default_rng(0).standard_normal((10, 2, 8)).astype(np.float32)
    for mode in ("strided", "local", ("all", "chunk")):
        step = DecodeStep(2, 10, 8, 8, 2, mode, local_attn_ctx=3)
        one = {
            "eager": lambda i, step=step: step(rows[i[0]], rows[i[0]], rows[i[0]], i[0]),
            "graph": tf.function(lambda i, step=step: step(*[tf.gather(rows, i[0])] * 3, i[0])),
            "compiled": tf.function(
                lambda i, step=step: step(*[tf.gather(rows, i[0])] * 3, i[0]), jit_compile=True
            ),
        }[way]

        def feed(i, one=one):
            return np.array(one([i] if way == "eager" else tf.constant([i])))

        def refuses(i, feed=feed):
            if way == "compiled":
                return np.isnan(feed(i)).all()
            with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match="out of order"):
                feed(i)
            return True

        assert refuses(5)
        first = [feed(i) for i in range(8)]
        assert refuses(9)
        np.testing.assert_array_equal(feed(7), first[7])
        if mode == "strided":
            np.testing.assert_array_equal([feed(i) for i in range(4, 8)], first[4:])
        else:
            assert refuses(4)
            feed(8)
        np.testing.assert_array_equal([feed(i) for i in range(8)], first)
        step.reset()
        assert refuses(1)


def test_rows_are_reordered():
    """Row b goes on as row rows[b] would have, in every group of heads, and from its own position."""
    draw = np.random.default_rng(0)
    k, v = (draw.standard_normal((3, 5, 16)).astype(np.float32) for _ in "kv")
    rows, lengths = [2, 0, 0], np.array([2, 5, 4])
    one, other = (DecodeStep(3, 24, 16, 16, 4, ("all", "local", "chunk"), 4) for _ in range(2))
    one.prefill(k, v, lengths)
    tf.function(one.reorder)(tf.constant(rows))
    other.prefill(k[rows], v[rows], lengths[rows])
    new = draw.standard_normal((3, 16)).astype(np.float32)
    np.testing.assert_array_equal(*[step(new, new, new, lengths[rows]) for step in (one, other)])
    with pytest.raises(ValueError, match=r"rows=\[0 1 3\] does not exist; this DecodeStep has rows 0 to 2"):
        one.reorder([0, 1, 3])
    with pytest.raises(ValueError, match=r"rows has shape \(2,\); .*\[batch\] = \[3\]"):
        one.reorder([0, 1])
    with pytest.raises(tf.errors.InvalidArgumentError, match="rows does not exist"):
        tf.function(one.reorder)(tf.constant([0, 1, 3]))


def test_rows_that_are_out_of_order_are_told():
    step = DecodeStep(2, 24, 8, 8, 2, "local", 4)
    step.prefill(*[np.ones((2, 4, 8), np.float32)] * 2, lengths=[1, 4])
    with pytest.raises(ValueError, match="position=4 is out of order, 1, 4 were fed: feed the next one"):
        step(ROW, ROW, ROW, 4)
    step(ROW, ROW, ROW, [1, 4])


@pytest.mark.parametrize("mode", ["all", "strided", "fixed"])
def test_a_position_out_of_range_never_reads_or_changes_a_cache(mode):
    """Eagerly and in a graph it is an error; XLA cannot stop, there the output is no number."""
    step = DecodeStep(2, 16, 8, 8, 2, mode, local_attn_ctx=8, blocksize=8, num_verts=1, vertsize=1)
    for position in range(16):
        step(ROW, ROW, ROW, position)
    held = [cache.numpy() for cache in step.caches]
    graph = tf.function(lambda position: step(9 * ROW, 9 * ROW, 9 * ROW, position))
    compiled = tf.function(lambda position: step(9 * ROW, 9 * ROW, 9 * ROW, position), jit_compile=True)
    for bad in (16, 1000, -1):
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"position does not exist; .* 0 to 15"):
            graph(tf.constant(bad))
        assert np.isnan(compiled(tf.constant(bad))).all()
    for before, cache, group in zip(held, step.caches, step.groups, strict=True):
        shape = [2, group.slots, -1]  # the last slot is never read
        np.testing.assert_array_equal(np.reshape(cache, shape)[:, :-1], before.reshape(shape)[:, :-1])


class Sampler(tf.Module):
    def __init__(self):
        self.decode = DecodeStep(2, 16, 8, 8, 2, ("local", "strided"), 4, blocksize=4)

    @tf.function(input_signature=[tf.TensorSpec([2, 8]), tf.TensorSpec([], tf.int32)])
    def step(self, x, position):
        return self.decode(x, x, x, position)


def test_caches_are_saved_and_loaded(tmp_path):
    rows = np.random.default_rng(0).standard_normal((16, 2, 8)).astype(np.float32)
    one, other = Sampler(), Sampler()
    assert len(one.variables) == 3 and not one.trainable_variables
    want = [one.step(row, position).numpy() for position, row in enumerate(rows)]
    one.decode.reset()
    assert not np.any([cache.numpy().any() for cache in one.variables])
    for position in range(8):
        one.step(rows[position], position)
    tf.train.Checkpoint(sampler=one).write(str(tmp_path / "checkpoint"))
    tf.saved_model.save(one, str(tmp_path / "model"))
    tf.train.Checkpoint(sampler=other).read(str(tmp_path / "checkpoint")).assert_consumed()
    for sampler in (one, other, tf.saved_model.load(str(tmp_path / "model"))):
        for position in range(8, 16):
            np.testing.assert_array_equal(sampler.step(rows[position], tf.constant(position)), want[position])
