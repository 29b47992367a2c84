"""A prompt in one pass equals a prompt step by step, rows at positions of their own equal rows alone."""

import numpy as np
import pytest
import tensorflow as tf
from test_model_decode import MODES, pattern

from sparse_attention.attention import attention_impl
from sparse_attention.decode import DecodeStep
from sparse_attention.layers import SparseSelfAttention

TIME = 128
Q, K, V = (tf.random.stateless_normal([3, TIME, width], [1, width]) for width in (48, 48, 96))


def stepped(step, start, count, jit=False):
    """Rows [batch, count, width] of `count` steps from start, an integer or one a row."""
    start = tf.broadcast_to(start, [3]) if np.ndim(start) else tf.constant(start)

    @tf.function(jit_compile=jit)
    def loop():
        outs = tf.TensorArray(tf.float32, count)
        for done in tf.range(count):
            q, k, v = (
                tf.gather(x, tf.broadcast_to(start + done, [3]), axis=1, batch_dims=1) for x in (Q, K, V)
            )
            outs = outs.write(done, step(q, k, v, start + done))
        return tf.transpose(outs.stack(), [1, 0, 2])

    return loop().numpy()


@pytest.mark.parametrize("lengths", [45, [3, 96, 64]], ids=str)
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_prompt_in_one_pass_equals_stepping_through_it(mode, lengths):
    step = DecodeStep(3, TIME, 48, 96, **pattern(mode))
    step.prefill(K, V, lengths)
    rows = stepped(step, lengths, 32)
    want = attention_impl(Q, K, V, **pattern(mode)).numpy()
    for row, length in enumerate(np.broadcast_to(lengths, 3)):
        np.testing.assert_allclose(rows[row], want[row, length : length + 32], atol=2e-6)


@pytest.mark.parametrize("mode", ["fixed", "previous+summary", ("local", "strided")], ids=str)
def test_rows_at_positions_of_their_own_under_xla(mode):
    step = DecodeStep(3, TIME, 48, 96, **pattern(mode))
    lengths = np.array([5, 40, 90], np.int32)
    tf.function(lambda n: step.prefill(K, V, n), jit_compile=True)(tf.constant(lengths))
    rows = stepped(step, lengths, 16, jit=True)
    want = attention_impl(Q, K, V, **pattern(mode)).numpy()
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(rows[row], want[row, length : length + 16], atol=2e-6)


def test_a_shorter_prompt_than_the_context_and_one_of_nothing():
    step, empty = (DecodeStep(3, TIME, 48, 96, **pattern("fixed")) for _ in range(2))
    step.prefill(K[:, :50], V[:, :50])
    empty.prefill(K, V, 0)
    want = attention_impl(Q, K, V, **pattern("fixed")).numpy()
    np.testing.assert_allclose(stepped(step, 50, 20), want[:, 50:70], atol=2e-6)
    np.testing.assert_allclose(stepped(empty, 0, 20), want[:, :20], atol=2e-6)


@pytest.mark.parametrize("dtype, epsilon", [(tf.float16, 2**-11), (tf.bfloat16, 2**-8)])
def test_caches_of_half_precision_hold_the_rounded_keys_and_lose_nothing_else(dtype, epsilon):
    rounded = [tf.cast(tf.cast(x, dtype), tf.float32) for x in (K, V)]
    want = attention_impl(Q, *rounded, **pattern("fixed")).numpy()
    step = DecodeStep(3, TIME, 48, 96, **pattern("fixed"), dtype=dtype)
    assert {cache.dtype for cache in step.caches} == {dtype}
    step.prefill(K, V, 64)
    np.testing.assert_allclose(stepped(step, 64, 32), want[:, 64:96], atol=2e-6)
    assert np.abs(want - attention_impl(Q, K, V, **pattern("fixed"))).max() < 16 * epsilon


def test_one_row_out_of_range_is_refused_or_alone_no_number():
    step = DecodeStep(3, TIME, 48, 96, **pattern("strided"))
    step.prefill(K, V)
    held = step.caches[0].numpy()
    call = lambda position: step(Q[:, 0], K[:, 0], V[:, 0], position)  # noqa: E731
    with pytest.raises(tf.errors.InvalidArgumentError, match="position does not exist"):
        tf.function(call)(tf.constant([0, 1, TIME]))
    out = tf.function(call, jit_compile=True)(tf.constant([0, TIME, -1])).numpy()
    assert np.isnan(out[1:]).all() and np.isfinite(out[0]).all()
    changed = (step.caches[0].numpy() != held).any(axis=1).reshape(3, step.groups[0].slots, 6)[:, :-1]
    assert changed[0].sum() <= 6 and not changed[1:].any()


@pytest.mark.parametrize(
    "arguments, error, text",
    [
        (
            dict(lengths=129),
            ValueError,
            "lengths=129 does not exist; k and v have 128 positions: give at most so many",
        ),
        (
            dict(lengths=[1, 2]),
            ValueError,
            r"lengths has shape \(2,\); it has to be a scalar, or one number a row",
        ),
        (dict(lengths=1.0), TypeError, "lengths is 1.0; it has to be an integer"),
        (
            dict(v=V[:, :64]),
            ValueError,
            r"v has shape \(3, 64, 96\); this DecodeStep takes \[batch, time, width\]",
        ),
        (
            dict(k=tf.zeros([3, 129, 48])),
            ValueError,
            "k has 129 positions; this DecodeStep takes a known number, 128",
        ),
    ],
)
def test_a_prompt_that_does_not_fit_is_refused_in_words(arguments, error, text):
    step = DecodeStep(3, TIME, 48, 96, **pattern("fixed"))
    with pytest.raises(error, match=text):
        step.prefill(**dict(k=K, v=V) | arguments)


def test_lengths_known_only_in_a_graph_are_checked_there():
    step = DecodeStep(3, TIME, 48, 96, **pattern("fixed"))
    fill = lambda n: step.prefill(K, V, n)  # noqa: E731
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="lengths does not exist; k and v have 128 positions"
    ):
        tf.function(fill)(tf.constant([0, 1, 129]))
    tf.function(fill, jit_compile=True)(tf.constant([9, 129, 9]))
    rows = tf.function(step, jit_compile=True)(Q[:, 9], K[:, 9], V[:, 9], tf.constant([9, 9, 9])).numpy()
    assert np.isnan(rows[1]).all() and np.isfinite(rows[[0, 2]]).all()


def test_the_layer_fills_its_caches_while_it_computes_a_prompt():
    layer = SparseSelfAttention(**pattern("fixed"))
    x = tf.random.stateless_normal([2, TIME, 48], [3, 4])
    want = layer(x)
    decode = layer.decode_step(2, TIME)
    lengths = tf.constant([64, 70])
    np.testing.assert_allclose(layer.prefill(x, decode, lengths), want, atol=1e-6)
    rows = layer.step(tf.gather(x, lengths, axis=1, batch_dims=1), decode, lengths)
    np.testing.assert_allclose(rows, tf.gather(want, lengths, axis=1, batch_dims=1), atol=1e-5)


def test_a_prefix_is_prefilled_whole_and_steps_begin_behind_it():
    shape = pattern(("prefix", "local"), local_attn_ctx=20)
    step, want = DecodeStep(3, TIME, 48, 96, **shape), attention_impl(Q, K, V, **shape).numpy()
    step.prefill(K, V, [20, 40, 21])
    rows = stepped(step, [20, 40, 21], 16)
    for row, start in enumerate((20, 40, 21)):
        np.testing.assert_allclose(rows[row], want[row, start : start + 16], atol=2e-6)
    whole = "the first 20 see each other: prefill takes all of them at once"
    with pytest.raises(ValueError, match=f"position=19 does not exist; .* positions 20 to 127: .*{whole}"):
        step(Q[:, 0], K[:, 0], V[:, 0], 19)
    with pytest.raises(ValueError, match=f"lengths=19 does not exist; .*{whole}"):
        step.prefill(K, V, 19)
    with pytest.raises(tf.errors.InvalidArgumentError, match=whole):
        tf.function(step)(Q[:, 0], K[:, 0], V[:, 0], tf.constant(19))
