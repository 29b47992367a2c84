"""SparseTransformerBlock: its written-out gradient is that of the layers it is made of."""

import re
import subprocess
import sys
from collections import Counter
from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf

from blocksparse.native import devices
from sparse_attention.layers import SparseTransformerBlock, alike
from sparse_attention.layers.dropout import dropout

TIME, WIDTH = 64, 32
PATTERN = dict(heads=2, attn_mode="fixed", local_attn_ctx=16, blocksize=8, num_verts=2, vertsize=1)
MERGED = dict(heads=2, attn_mode="local+strided", local_attn_ctx=8, blocksize=8)
SHARED = dict(PATTERN, heads=4, kv_heads=2)


def made(dtype="float32", **arguments):
    keras.utils.set_random_seed(0)
    block = SparseTransformerBlock(**{**PATTERN, **arguments}, dtype=dtype)
    block.build((None, TIME, WIDTH))
    for number, weight in enumerate(block.weights):
        weight.assign(weight + 0.2 * tf.random.stateless_normal(weight.shape, [number, 1]))
    return block


def rows(dtype="float32"):
    return tf.cast(tf.random.stateless_normal([3, TIME, WIDTH], [5, 6]), dtype)


def plain(block, drop=lambda x, branch: x, **given):
    """The block as its layers say it."""

    def call(x):
        h = x + drop(block.attention(block.norm1(x), **given), 0)
        return h + drop(block.contract(block.expand(block.norm2(h))), 1)

    return call


def results(block, call, x, jit=False):
    """y, and the gradients of x and of every weight."""

    @tf.function(jit_compile=jit)
    def run(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = call(x)
            loss = tf.reduce_sum(tf.sin(tf.cast(y, tf.float32)))
        return [y, *tape.gradient(loss, [x, *block.weights])]

    return [np.asarray(tf.cast(each, tf.float32)) for each in run(x)]


def error(came, want):
    """Root mean square over the largest; of what is 0 in theory (the keys' bias), over 1."""
    return np.sqrt(np.mean((came - want) ** 2)) / max(np.abs(want).max(), 1)


@pytest.mark.parametrize("recompute", ["none", "selective", "whole"])
@pytest.mark.parametrize(
    ("pattern", "jit"),
    [
        (PATTERN, False),
        (PATTERN, True),
        (MERGED, False),
        (dict(PATTERN, blocksparse=False), False),
        (dict(PATTERN, attn_mode="summary"), False),  # whose first rows see nothing
    ],
)
def test_gradients_are_those_of_the_layers(pattern, jit, recompute):
    block, x = made(recompute=recompute, **pattern), rows()
    for came, want in zip(results(block, block, x, jit), results(block, plain(block), x, jit), strict=True):
        assert error(came, want) < 5e-5


@pytest.mark.parametrize("blocksparse", [True, False])
def test_gradients_of_heads_that_share_keys(blocksparse):
    block, x = made(**SHARED, blocksparse=blocksparse), rows()
    assert block.attention.key.kernel.shape == (WIDTH, WIDTH // 2)
    for came, want in zip(results(block, block, x), results(block, plain(block), x), strict=True):
        assert error(came, want) < 5e-5
    assert SparseTransformerBlock.from_config(block.get_config()).attention.kv_heads == 2


@pytest.mark.parametrize(
    ("policy", "recompute"),
    [("mixed_float16", "none"), ("mixed_float16", "selective"), ("mixed_bfloat16", "whole")],
)
def test_half_precision_is_as_exact_as_the_layers(policy, recompute):
    exact = made()
    wanted = results(exact, plain(exact), rows())
    block, x = made(policy, recompute=recompute), rows(keras.DTypePolicy(policy).compute_dtype)
    came, usual = results(block, block, x), results(block, plain(block), x)
    for one, other, want in zip(came, usual, wanted, strict=True):
        assert error(one, want) < 2 * error(other, want) + 1e-4


@pytest.mark.parametrize("recompute", ["none", "selective", "whole"])
def test_both_passes_drop_the_same(recompute):
    block, x = made(recompute=recompute, dropout=0.4), rows()
    keys = tf.cast(tf.random.stateless_uniform([2, 3, 2], [7, 8], 0, 2**31 - 1, tf.int32), tf.uint32)
    dropping = plain(block, lambda x, branch: dropout(x, 0.4, keys[branch]))
    came = results(block, lambda x: block.run(block.values(), x, keys), x)
    for one, want in zip(came, results(block, dropping, x), strict=True):
        assert error(one, want) < 5e-5


def test_dropout_is_drawn_anew_at_each_call_and_not_outside_training():
    block, x = made(dropout=0.4, seed=1), rows()
    one, other = block(x, training=True), block(x, training=True)
    assert not np.allclose(one, other)
    np.testing.assert_array_equal(block(x), block(x, training=False))


@pytest.mark.parametrize(("recompute", "attentions"), [("none", 1), ("selective", 1), ("whole", 2)])
def test_attention_runs_again_only_where_all_does(recompute, attentions):
    block = made(recompute=recompute)

    @tf.function
    def run(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(block(x) ** 2)
        return tape.gradient(loss, x)

    kinds = Counter(op.type for op in run.get_concrete_function(rows()).graph.get_operations())
    assert (kinds["BlocksparseAttention"], kinds["BlocksparseAttentionGrad"]) == (attentions, 1)


def test_a_second_derivative_is_refused():
    block, x = made(blocksparse=False), rows()
    with pytest.raises(LookupError, match=r"again; .* build the block of"), tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            y = tf.reduce_sum(block(x) ** 2)
        outer.gradient(inner.gradient(y, x), x)


def test_frozen_layers_stay_in_their_place():
    block, x = made(), rows()
    want = block(x)
    block.norm1.trainable = False
    np.testing.assert_array_equal(block(x), want)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(block(x) ** 2)
    assert all(each is not None for each in tape.gradient(loss, block.trainable_variables))


def learning(jit):
    """A model that has learnt, and what it learnt from."""
    model = keras.Sequential(
        [
            keras.Input((TIME,)),
            keras.layers.Embedding(16, WIDTH),
            SparseTransformerBlock(**PATTERN, dropout=0.1, recompute="selective"),
            SparseTransformerBlock(**PATTERN, recompute="whole"),
            keras.layers.Dense(16),
        ]
    )
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=jit)
    tokens = np.tile(np.arange(16), (8, TIME // 16))
    losses = model.fit(tokens, tokens, epochs=12, verbose=0).history["loss"]
    assert losses[-1] < 0.7 * losses[0]
    return model, tokens


def test_it_learns_under_xla():
    learning(jit=True)


def test_where_a_gpu_trains_alike_blocks_are_compiled_once_and_by_themselves(monkeypatch):
    """Here for the CPU. What is traced outside training, to be saved perhaps, has no compiled function."""
    monkeypatch.setattr(devices, "compiles_for_gpu", lambda: True)
    alike.shared.cache_clear()
    block, other, x = made(), made(), rows()
    want = results(block, plain(block), x)
    for each in (block, other):
        for came, wanted in zip(results(each, partial(each, training=True), x), want, strict=True):
            assert error(came, wanted) < 5e-5
    functions = alike.shared(block.kind, compiled=True)
    assert functions is alike.shared(other.kind, compiled=True)
    assert [each.experimental_get_tracing_count() for each in functions[:2]] == [1, 1]
    for arguments in (dict(), dict(training=False)):
        graph = tf.function(partial(block, **arguments)).get_concrete_function(x).graph
        assert not any("Call" in op.type for op in graph.get_operations())


def test_it_learns_and_is_saved(tmp_path):
    model, tokens = learning(jit=False)
    model.save(tmp_path / "model.keras")
    model.export(tmp_path / "saved", verbose=False)
    np.save(tmp_path / "want.npy", model.predict(tokens, verbose=0))
    np.save(tmp_path / "tokens.npy", tokens)
    subprocess.run([sys.executable, "-c", LOADS, str(tmp_path)], check=True)


LOADS = """
import sys, keras, numpy as np, tensorflow as tf
import sparse_attention.layers
folder = sys.argv[1]
tokens, want = np.load(folder + "/tokens.npy"), np.load(folder + "/want.npy")
loaded = keras.models.load_model(folder + "/model.keras")
assert loaded.layers[1].dropout == 0.1 and loaded.layers[2].recompute == "whole"
np.testing.assert_allclose(loaded.predict(tokens, verbose=0), want, rtol=1e-4, atol=1e-5)
saved = tf.saved_model.load(folder + "/saved")
np.testing.assert_allclose(saved.serve(tf.constant(tokens, tf.float32)), want, rtol=1e-4, atol=1e-5)
"""


def test_a_quantized_block_is_made_of_its_layers_and_can_be_saved_and_cloned(tmp_path):
    block, x = made(), rows()
    want = block(x)
    model = keras.Sequential([keras.Input((TIME, WIDTH)), block])
    model.quantize("int8")
    assert block.expand.quantization_mode == "int8"
    after = block(x)
    assert np.abs(after - want).max() < 0.1 * np.abs(want).max()
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "model.keras")(x), after)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    np.testing.assert_array_equal(clone(x), after)


def test_low_rank_additions_train():
    block, x = made(dropout=0.1), rows()
    for dense in (block.attention.query, block.contract):
        dense.enable_lora(2)
        dense.lora_kernel_b.assign(tf.ones_like(dense.lora_kernel_b) * 0.1)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(block(x, training=True) ** 2)
    variables = [block.attention.query.lora_kernel_a.value, block.contract.lora_kernel_b.value]
    assert all(np.any(gradient) for gradient in tape.gradient(loss, variables))


@pytest.mark.parametrize("recompute", ["none", "selective", "whole"])
def test_a_batch_without_rows(recompute):
    """A replica gets one where the last batch of an epoch is small."""
    block, x = made(dropout=0.1, recompute=recompute), rows()[:0]
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = block(x, training=True)
    assert y.shape == x.shape and tape.gradient(y, x).shape == x.shape


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (dict(recompute=True), "recompute=True: choose one of none, selective, whole"),
        (dict(dropout=1.0), "dropout=1.0: it has to be at least 0 and less than 1"),
        (dict(ff_ratio=0), "ff_ratio=0: it has to be above 0"),
        (dict(ff_ratio=float("inf")), "ff_ratio=inf: it has to be above 0"),
        (dict(epsilon=-1), "epsilon=-1: it has to be at least 0"),
        (dict(dropout="a"), "dropout='a': it has to be at least 0 and less than 1"),
        (dict(key_width=0), "key_width=0; it has to be at least 1"),
        (dict(attn_mode="somewhere"), "somewhere"),
    ],
)
def test_what_means_no_block_is_refused(arguments, text):
    with pytest.raises(ValueError, match=text):
        SparseTransformerBlock(**{**PATTERN, **arguments})


def test_the_inner_width_is_the_number_that_was_meant():
    block = SparseTransformerBlock(4, ff_ratio=1.15)
    block.build((None, None, 100))
    assert block.expand.units == 115


@pytest.mark.parametrize(
    "arguments", [dict(recompute="none"), dict(recompute="whole"), MERGED, dict(blocksparse=False)], ids=str
)
def test_padding_and_documents(arguments):
    block, x = made(**arguments), rows()
    given = dict(
        mask=tf.constant(np.arange(TIME) % 50 > [[0], [9], [48]]),
        segment_ids=np.repeat(np.arange(4, dtype=np.int32), TIME // 4)[None].repeat(3, 0),
    )
    want = results(block, plain(block, **given), x)
    for came, wanted in zip(results(block, lambda x: block(x, **given), x), want, strict=True):
        assert error(came, wanted) < 1e-5
    assert error(results(block, block, x)[0], want[0]) > 1e-2
    ids = keras.Input((TIME,), dtype="int32")
    y = block(keras.layers.Embedding(10, WIDTH, mask_zero=True)(ids))
    assert y._keras_mask is not None  # passed on


def test_masks_are_refused():
    block = made()
    with pytest.raises(ValueError, match="attention_mask was given"):
        block(rows(), attention_mask=tf.ones([3, TIME, TIME]))


DOT = re.compile(r" dot\(\S+ %(\S+), \S+ %(\S+)\), lhs_contracting_dims={(\d)}, rhs_contracting_dims={(\d)}")


@pytest.mark.parametrize("recompute", ["none", "selective", "whole"])
def test_no_two_products_share_an_operand(recompute):
    """XLA would make one product of them."""
    block, x = made(recompute=recompute), rows()
    forward, backward, _ = alike.shared(block.kind, compiled=True)
    arguments = block.values(), x, None, None
    _, kept = forward(*arguments)
    back = x, kept._replace(x=None if recompute == "none" else x), block.values(), None, None
    for passes, given, count in ((forward, arguments, 6), (backward, back, 12)):
        text = passes.experimental_get_compiler_ir(*given)(stage="hlo")
        dots = [match.groups() for match in DOT.finditer(text)]
        operands = Counter(each for a, b, i, j in dots for each in (("left", a, i), ("right", b, j)))
        assert len(dots) >= count and operands.most_common(1)[0][1] == 1, operands.most_common(3)


@pytest.mark.parametrize("recompute", ["none", "selective", "whole"])
@pytest.mark.parametrize("known", [True, False])
def test_rows_of_no_positions(recompute, known):
    block = made(recompute=recompute, dropout=0.1)

    @tf.function(input_signature=[tf.TensorSpec([3 if known else None, 0 if known else None, WIDTH])])
    def run(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = block(x, training=True)
        return y, tape.gradient(y, x)

    for results in (run, run.python_function):
        assert [x.shape for x in results(tf.ones([3, 0, WIDTH]))] == [(3, 0, WIDTH)] * 2
