"""The residual block: dropout that both passes agree on, recomputation that changes nothing."""

import re
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
from sparse_transformer import config
from sparse_transformer.model import Embedding, ResidualBlock, SparseTransformer, bits

from sparse_attention.layers import alike
from sparse_attention.layers.dropout import dropout, dropout_keys
from sparse_attention.layers.rows import gelu
from sparse_attention.recompute import recomputable

TINY = replace(
    config.load("enwik8_small"),
    grid=(4, 16),
    width=32,
    heads=2,
    layers=2,
    local_attn_ctx=16,
    num_verts=2,
    dropout=0.4,
)


def kept(x):
    return x.numpy() != 0


def mask(rows=4, rate=0.4, seed=1, step=2, branch=3, first_row=0):
    return kept(dropout(tf.ones([rows, 16, 32]), rate, dropout_keys(seed, step, branch, rows, first_row)))


def test_dropout_keeps_its_share_and_the_mean():
    y = dropout(tf.ones([8, 64, 64]), 0.4, dropout_keys(1, 2, 3, 8)).numpy()
    assert abs((y != 0).mean() - 0.6) < 0.01
    assert np.unique(y).size == 2 and np.isclose(y.max(), 1 / 0.6)


@pytest.mark.parametrize("changed", [{"seed": 2}, {"step": 3}, {"branch": 4}, {"first_row": 4}])
def test_dropout_depends_on_each_of_its_coordinates(changed):
    agreement = (mask() == mask(**changed)).mean()
    assert abs(agreement - (0.6**2 + 0.4**2)) < 0.05  # as for independent draws


def test_dropout_of_a_share_of_the_batch_is_the_share_of_the_whole():
    parts = [mask(rows=2, first_row=row) for row in (0, 2)]
    assert (np.concatenate(parts) == mask(rows=4)).all()


@pytest.mark.parametrize("jit", [False, True])
def test_both_passes_draw_the_same_mask(jit):
    """The first pass' mask is where y is not 0, the second's where the gradient is not; XLA draws the same."""

    @recomputable
    def drop(x, step):
        return dropout(x, 0.4, dropout_keys(1, step, 3, 4))

    @tf.function(jit_compile=jit)
    def both(x, step):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = drop(x, step, recompute=True)
            loss = tf.reduce_sum(y**2)
        return y, tape.gradient(loss, x)

    y, gradient = both(tf.random.stateless_uniform([4, 16, 32], [1, 2], 1.0, 2.0), tf.constant(2, tf.int64))
    assert (kept(y) == kept(gradient)).all()
    assert (kept(y) == mask()).all()


def test_xla_gets_no_constant_of_all_places():
    """Each pass of dropout would read one of twice the bytes of its rows."""
    compiled = tf.function(lambda x, keys: dropout(x, 0.4, keys), jit_compile=True)
    arguments = tf.zeros([4, 512, 64]), dropout_keys(1, 2, 3, 4)
    text = compiled.experimental_get_compiler_ir(*arguments)(stage="hlo")
    assert "multiply" in text and not re.search(r"\[512,64\]\S* constant", text)


def gradients(settings, shared=True):
    keras.utils.set_random_seed(0)
    model = SparseTransformer(settings, shared=shared)
    model.logits.kernel.assign(tf.random.stateless_normal(model.logits.kernel.shape, [1, 2]))
    tokens = tf.random.stateless_uniform([2, settings.n_ctx], [3, 4], 0, 256, tf.int32)
    weights = [v.value for v in model.trainable_variables]

    @tf.function
    def step(tokens, step):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(bits(model(tokens, training=True, step=step), tokens))
        return loss, tape.gradient(loss, weights)

    return step(tokens, tf.constant(7, tf.int64))


def same(one, other, rtol, atol):
    np.testing.assert_allclose(one[0], other[0], rtol=1e-6)
    for a, b in zip(one[1], other[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


@pytest.mark.parametrize("xla", [False, True])
@pytest.mark.parametrize("recompute", ["none", "selective", "whole"])
def test_recomputation_changes_neither_loss_nor_gradients(recompute, xla):
    settings = replace(TINY, recompute=recompute)
    same(gradients(settings, shared=False), gradients(replace(settings, xla=xla)), 1e-5, 1e-4)


def test_xla_changes_neither_loss_nor_gradients():
    same(gradients(TINY), gradients(replace(TINY, xla=True)), 1e-5, 1e-4)


@pytest.mark.parametrize(("recompute", "kept"), [("none", 11), ("selective", 2), ("whole", 0)])
def test_a_compiled_block_hands_on_its_result_and_what_is_kept(recompute, kept):
    """What it hands its gradient besides is a copy, of x and every weight, for each layer."""
    settings = replace(TINY, xla=True, recompute=recompute)
    block = SparseTransformer(settings, shared=True).blocks[0]
    x = tf.zeros([2, settings.n_ctx, settings.width])

    @tf.function
    def both(x, values):
        with tf.GradientTape() as tape:
            tape.watch([x, values])
            passes = alike.shared(block.kind, compiled=True)
            y = block.run(values, x, block.keys(tf.constant(1), 2), passes=passes)
        return tape.gradient(y, [x, values])

    calls = [
        op for op in both.get_concrete_function(x, block.values()).graph.get_operations() if "Call" in op.type
    ]
    assert [len(call.outputs) for call in calls] == [1 + kept, 1 + len(block.values())]


def test_blocks_of_a_mode_are_traced_once():
    settings = replace(TINY, layers=8, local_attn_ctx=8, layer_modes=("strided", "local", "local", "local"))
    alike.shared.cache_clear()
    model = SparseTransformer(settings, shared=True)
    tf.function(model)(tf.zeros([1, settings.n_ctx], tf.int32))
    passes = [alike.shared(block.kind, compiled=False) for block in model.blocks]
    assert passes[1:4] * 2 == passes[1:4] + passes[5:] and passes[0] == passes[4] != passes[1]
    assert [each.forward.experimental_get_tracing_count() for each in passes[:2]] == [1, 1]


def test_blocksparse_is_dense():
    same(gradients(TINY), gradients(replace(TINY, blocksparse=False)), 1e-3, 1e-4)


def test_block_follows_equations_12_to_14():
    block = ResidualBlock(replace(TINY, dropout=0.0), 0)
    x = tf.random.stateless_normal([2, 64, 32], [1, 2])
    y = block(x)
    a = block.attention(block.norm1(x))
    hidden = block.norm2(x + a) @ block.expand.kernel + block.expand.bias
    b = gelu(hidden) @ block.contract.kernel + block.contract.bias
    np.testing.assert_allclose(y, x + a + b, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gelu(2.0), 2 / (1 + np.exp(-1.702 * 2)), rtol=1e-6)


def test_initial_deviations():
    keras.utils.set_random_seed(0)
    block = ResidualBlock(replace(TINY, width=256, layers=8), 0)
    block.build((None, 64, 256))
    wanted = {
        "query": 0.125 / 256,
        "expand": 0.125 / 256,
        "project": 0.125 / 256 / 16,
        "contract": 0.125 / 1024 / 16,
    }
    layers = {**vars(block), "query": block.attention.query, "project": block.attention.project}
    for name, variance in wanted.items():
        assert np.isclose(np.var(layers[name].kernel), variance, rtol=0.05), name
        assert not np.any(layers[name].bias), name
    assert not np.array_equal(block.attention.query.kernel, block.attention.key.kernel)


def test_embedding_is_shifted_and_sums_its_tables():
    embedding = Embedding((2, 3), 8)
    tokens = np.array([[5, 6, 7, 8, 9, 10]])
    x = embedding(tokens)
    np.testing.assert_array_equal(x[0, 0], embedding.start)
    rows, columns = embedding.position
    want = embedding.token[8] + rows[1] + columns[0]  # slot 4 holds token 3, of row 1 and column 0
    np.testing.assert_allclose(x[0, 4], want, rtol=1e-6)
    for position in range(6):
        before = tokens[:, position - 1] if position else np.zeros(1, int)
        np.testing.assert_allclose(embedding.step(before, position), x[:, position], rtol=1e-6, atol=1e-7)
