"""SparseSelfAttention as a Keras layer: configuration, saving, fit."""

import dataclasses
from dataclasses import replace

import keras
import numpy as np
import oracle
import pytest
import tensorflow as tf
from sparse_transformer import config
from sparse_transformer.model import SparseTransformer

from blocksparse import Pattern, from_mask
from blocksparse.fused.op import kernel_name
from sparse_attention.attention import attention_impl
from sparse_attention.layers import SparseSelfAttention, SparseTransformerBlock

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


@pytest.mark.parametrize("blocksparse", [True, False])
def test_heads_that_share_keys(tmp_path, blocksparse):
    """The maps of keys and values shrink; what is saved comes back; steps give the rows of the whole."""
    shared = SparseSelfAttention(4, "local", 16, 8, key_width=8, kv_heads=2, blocksparse=blocksparse)
    model = keras.Sequential([keras.Input((64, 16)), shared])
    assert [own.kernel.shape[1] for own in (shared.query, shared.key, shared.value)] == [8, 4, 8]
    x = np.random.default_rng(0).normal(size=(3, 64, 16)).astype(np.float32)
    y, maps = model(x), (shared.query(x), shared.key(x), shared.value(x))
    a = attention_impl(*maps, **shared.pattern, kv_heads=2)
    np.testing.assert_allclose(y, shared.project(a), rtol=1e-5, atol=1e-6)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.layers[0].kv_heads == 2
    np.testing.assert_array_equal(loaded(x), y)
    decode = shared.decode_step(3, 64)
    np.testing.assert_allclose(shared.prefill(x[:, :32], decode), y[:, :32], rtol=1e-5, atol=1e-6)
    for position in (32, 33):
        step = shared.step(x[:, position], decode, position)
        np.testing.assert_allclose(step, y[:, position], rtol=1e-5, atol=1e-6)


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


@pytest.mark.parametrize("mode", ["int8", "int4", "float8"])
def test_a_quantized_model_is_saved_and_loaded(tmp_path, mode):
    model = keras.Sequential([keras.Input((64, 16)), SparseSelfAttention(2, "local", 8, 8)])
    x = np.random.default_rng(0).normal(size=(2, 64, 16)).astype(np.float32)
    before = model(x)
    model.quantize(mode)
    after = model(x)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    maps = [
        [layer.query, layer.key, layer.value, layer.project] for layer in (model.layers[0], loaded.layers[0])
    ]
    assert [own.dtype_policy.name for own in maps[1]] == [own.dtype_policy.name for own in maps[0]]
    assert all(own.quantization_mode == mode for own in maps[1])
    np.testing.assert_array_equal(loaded(x), after)
    if mode != "float8":  # whose scales are those of a training to come
        assert np.abs(after - before).max() > 0
    again = SparseSelfAttention.from_config(loaded.layers[0].get_config())
    again.build((None, 64, 16))
    assert again.query.quantization_mode == mode


def embedded(**kwargs):
    return keras.layers.Embedding(10, 16, **kwargs)


def padded_ids():
    """Token numbers of six rows, 0 being padding: none, behind, before, on both sides, all of it."""
    ids = np.random.default_rng(0).integers(1, 10, (6, 64)).astype(np.int32)
    ids[1, 20:], ids[2, 63:], ids[3, :44], ids[4, :9], ids[4, 50:], ids[5] = 0, 0, 0, 0, 0, 0
    return ids


def masked_models(**pattern):
    """A model with keras.layers.MultiHeadAttention and one with this layer, of the same weights, over padded tokens."""
    keras.utils.set_random_seed(0)
    ids, head = keras.Input((64,), dtype="int32"), keras.layers.Dense(10)
    x = embedded(mask_zero=True)(ids)
    theirs, ours = keras.layers.MultiHeadAttention(2, 8), SparseSelfAttention(2, blocksize=8, **pattern)
    y, z = theirs(x, x, use_causal_mask=pattern.get("causal", True)), ours(x)
    for own, their in zip(ours.weights, theirs.weights, strict=True):
        own.assign(np.reshape(their, own.shape))
    models = [keras.Model(ids, head(each)) for each in (y, z)]
    for model in models:
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return models


@pytest.mark.parametrize("pattern", [{}, {"causal": False}, {"blocksparse": False}], ids=str)
def test_a_keras_mask_does_what_it_does_in_multi_head_attention(pattern):
    """Padding before, behind or around the tokens: the same logits for tokens, the same loss, the same step."""
    ids = padded_ids()
    theirs, ours = masked_models(**pattern)
    real = ids > 0
    np.testing.assert_allclose(ours(ids).numpy()[real], theirs(ids).numpy()[real], rtol=0, atol=1e-5)
    losses = [model.evaluate(ids, ids, verbose=0) for model in (theirs, ours)]
    assert abs(losses[0] - losses[1]) < 1e-5
    for model in (theirs, ours):
        model.train_on_batch(ids, ids)
    weights = [model.layers[-2].weights for model in (theirs, ours)]
    assert len(weights[0]) == 8
    for a, b in zip(*weights, strict=True):
        np.testing.assert_allclose(b, np.reshape(a, b.shape), rtol=0, atol=1e-5)


def test_masks_segments_and_lengths_say_the_same_of_padding(tmp_path):
    ids = padded_ids()
    real, x = ids > 0, np.random.default_rng(1).standard_normal((6, 64, 16)).astype(np.float32)
    layer = SparseSelfAttention(**PATTERN | {"local_attn_ctx": 8})
    masked = layer(x, mask=tf.constant(real)).numpy()
    np.testing.assert_array_equal(layer(x, segment_ids=np.where(real, 3, -1).astype(np.int32)), masked)
    assert not np.array_equal(layer(x), masked)
    lengths = np.array([64, 20, 63, 64, 50, 0], np.int32)
    behind = np.arange(64) < lengths[:, None]
    np.testing.assert_array_equal(layer(x, lengths=lengths), layer(x, mask=tf.constant(behind)))
    packed = np.repeat(np.arange(4, dtype=np.int32), 16)[None].repeat(6, 0)
    both = layer(x, segment_ids=packed, mask=tf.constant(real))
    np.testing.assert_array_equal(layer(x, segment_ids=np.where(real, packed, -5)), both)


def test_a_mask_is_passed_on_and_comes_along_beside_segments(tmp_path):
    ids, documents = keras.Input((64,), dtype="int32"), keras.Input((64,), dtype="int32")
    x = embedded(mask_zero=True)(ids)
    layer = SparseSelfAttention(2, "local", 12, 8)
    y = layer(x, segment_ids=documents)
    model = keras.Model([ids, documents], SparseSelfAttention(2, "local", 12, 8)(y))
    given = padded_ids(), np.repeat(np.arange(2, dtype=np.int32), 32)[None].repeat(6, 0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(given), model(given))
    (spoilt,) = (layer.embeddings for layer in model.layers if hasattr(layer, "embeddings"))
    before = model(given).numpy()
    spoilt.assign(tf.tensor_scatter_nd_update(spoilt, [[0]], [np.full(16, 9, np.float32)]))
    real = given[0] > 0
    np.testing.assert_array_equal(model(given).numpy()[real], before[real])


@pytest.mark.parametrize("mask", [np.ones([2, 64], np.float32), np.ones([2, 64, 1], bool)])
def test_a_mask_that_is_none_is_refused_in_words(mask):
    layer = SparseSelfAttention(2, blocksize=8)
    with pytest.raises(
        ValueError, match=r"mask is .* of shape .*; it has to be bool \[batch, time\] = \(2, 64\)"
    ):
        layer(np.ones([2, 64, 16], np.float32), mask=mask)


@pytest.mark.parametrize("x", [keras.KerasTensor((None, 64, 16)), np.ones([2, 64, 16], np.float32)])
def test_attention_mask_is_refused_in_words(x):
    with pytest.raises(
        ValueError, match=r"attention_mask was given, .* does not take: .* Keras mask or lengths, packed"
    ):
        SparseSelfAttention(2, blocksize=8)(x, attention_mask=np.ones([2, 64, 64], bool))


@keras.saving.register_keras_serializable(package="tests")
def looked_up(query, key):
    return (np.arange(50) % 3)[key] <= query  # no position from 50 on may be asked about


@pytest.mark.parametrize("kind, sees", [(SparseSelfAttention, looked_up), (SparseTransformerBlock, None)])
def test_a_model_of_unknown_time(tmp_path, kind, sees):
    """Predicts, learns from batches of mixed lengths, is saved and exported; a longer time ends it in words."""
    own = dict(sees=sees) if sees else dict(attn_mode=("local", "strided"), local_attn_ctx=5)
    keras.utils.set_random_seed(0)
    layer = kind(2, blocksize=8, max_time=50, **own)
    model = keras.Sequential([keras.Input((None, 16)), layer])
    model.compile("sgd", "mse")
    data = {
        time: np.random.default_rng(time).normal(size=(2, time, 16)).astype(np.float32) for time in (7, 50)
    }
    for x in data.values():
        np.testing.assert_allclose(model.predict(x, verbose=0), layer(tf.constant(x)), atol=1e-5)
    spec = tf.TensorSpec([None, None, 16])
    batches = tf.data.Dataset.from_generator(
        lambda: ((x, x) for x in data.values()), output_signature=(spec, spec)
    )
    before = layer.get_weights()
    model.fit(batches.repeat(2), steps_per_epoch=4, verbose=0)
    assert all(np.abs(a - b).max() > 0 for a, b in zip(before, layer.get_weights()) if a.ndim == 2)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(data[7], verbose=0), model.predict(data[7], verbose=0))
    model.export(tmp_path / "exported", verbose=False)
    exported = tf.saved_model.load(str(tmp_path / "exported"))
    np.testing.assert_allclose(exported.serve(data[7]), model.predict(data[7], verbose=0), atol=1e-5)
    with pytest.raises(tf.errors.InvalidArgumentError, match="above max_time=50"):
        model.predict(np.zeros((2, 51, 16), np.float32), verbose=0)


def test_keras_names_mean_the_same(tmp_path):
    x = tf.random.stateless_normal([2, 20, 16], [1, 2])
    ours = SparseSelfAttention(num_heads=4, key_dim=2, use_bias=False, dropout=0.0, causal=False, blocksize=8)
    keras.utils.set_random_seed(1)
    theirs = keras.layers.MultiHeadAttention(num_heads=4, key_dim=2, value_dim=4, use_bias=False)
    theirs.build(x.shape, x.shape)
    ours.build(x.shape)
    assert ours.key.units == 8 and len(ours.weights) == len(theirs.weights) == 4
    ours.set_weights([w.reshape(v.shape) for w, v in zip(theirs.get_weights(), ours.weights)])
    np.testing.assert_allclose(ours(x), theirs(x, x), atol=1e-5)
    again = SparseSelfAttention.from_config(ours.get_config())
    assert (again.heads, again.key_width, again.use_bias) == (4, 8, False)
    biased = SparseSelfAttention(2, bias_initializer="ones")
    biased.build(x.shape)
    assert (biased.query.bias.numpy() == 1).all()


@pytest.mark.parametrize(
    "sees",
    [looked_up, Pattern(lambda i, j: abs(i - j) < 12, reach=12, ahead=12)],
    ids=["function", "pattern"],
)
def test_a_pattern_of_ones_own_takes_any_time(sees):
    layer = SparseSelfAttention(2, blocksize=8, sees=sees)
    x = tf.random.stateless_normal([2, 37, 16], [1, 2])
    layer.build(x.shape)
    q, k, v = (part(x).numpy() for part in (layer.query, layer.key, layer.value))
    seen = getattr(sees, "sees", sees)(*np.indices((37, 37)))
    out, _ = oracle.attention(q, k, v, np.stack([seen, seen]), 8**-0.5)
    np.testing.assert_allclose(layer(x), layer.project(tf.constant(out, tf.float32)), atol=1e-5)


@keras.saving.register_keras_serializable(package="tests")
def both_ways(query, key):
    return abs(query - key) < 12


@keras.saving.register_keras_serializable(package="tests")
def by_head(query, key, head):
    return (key <= query) & ((query - key) % (head + 1) < 1)


SEES = {
    "function": both_ways,
    "of the head": by_head,
    "pattern": Pattern(both_ways, reach=12, ahead=12),
    "one a head": (Pattern(both_ways, reach=12, ahead=12), both_ways),
}


@pytest.mark.parametrize("sees", SEES.values(), ids=SEES)
def test_a_pattern_of_ones_own(tmp_path, sees):
    model = keras.Sequential([keras.Input((64, 16)), SparseSelfAttention(2, blocksize=8, sees=sees)])
    layer, x = model.layers[0], tf.random.stateless_normal([3, 64, 16], [1, 2])
    want = from_mask(sees, 64, 64, 2, 8).attention(layer.query(x), layer.key(x), layer.value(x))
    np.testing.assert_allclose(model(x), layer.project(want), rtol=1e-5, atol=1e-6)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.layers[0].sees == sees
    np.testing.assert_array_equal(loaded(x), model(x))
    with pytest.raises(ValueError, match="made with sees= has no decode_step"):
        layer.decode_step(1, 64)


def test_a_pattern_without_a_name_is_not_saved(tmp_path):
    model = keras.Sequential([keras.Input((64, 16)), SparseSelfAttention(2, sees=lambda q, k: k <= q)])
    with pytest.raises(ValueError, match=r"cannot be saved by name: decorate .*register_keras_serializable"):
        model.save(tmp_path / "model.keras")


@pytest.mark.parametrize("more", [{"attn_mode": "local", "local_attn_ctx": 8}, {"blocksparse": False}])
def test_sees_goes_alone(more):
    with pytest.raises(ValueError, match="sees is the whole pattern of a block-sparse layer, but attn_mode="):
        SparseSelfAttention(2, sees=both_ways, **more)


@pytest.mark.parametrize(
    "batch, more",
    [(1, {}), (None, {"attn_mode": ("local", "strided")}), (None, {"attn_mode": "local+strided"})],
)
def test_tensorflow_lite(batch, more):
    """The converter knows TensorFlow's operations alone: for it the graph is built of those, whatever runs here."""
    layer = SparseSelfAttention(**PATTERN | {"local_attn_ctx": 8} | more)
    model = keras.Sequential([keras.Input((64, 16), batch_size=batch), layer])
    x = np.random.default_rng(0).normal(size=(1, 64, 16)).astype(np.float32)
    want = model(x)
    lite = tf.lite.Interpreter(model_content=tf.lite.TFLiteConverter.from_keras_model(model).convert())
    lite.allocate_tensors()
    lite.set_tensor(lite.get_input_details()[0]["index"], x)
    lite.invoke()
    np.testing.assert_allclose(
        lite.get_tensor(lite.get_output_details()[0]["index"]), want, rtol=0, atol=1e-5
    )
    ops = {
        op.type for op in tf.function(model.call).get_concrete_function(tf.constant(x)).graph.get_operations()
    }
    # elsewhere the kernels as ever
    assert kernel_name() == "reference" or ops & {"BlocksparseAttention", "BlocksparseJoinedAttention"}


def test_a_layer_that_looks_ahead(tmp_path):
    x = np.random.default_rng(0).standard_normal((2, 64, 16)).astype(np.float32)
    pattern = dict(heads=2, attn_mode=("local", "strided"), local_attn_ctx=8, blocksize=8)
    layer = SparseSelfAttention(**pattern, causal=False)
    model = keras.Sequential([keras.Input((64, 16)), layer])
    q, k, v = (part(x) for part in (layer.query, layer.key, layer.value))
    want = layer.project(attention_impl(q, k, v, **pattern, causal=False))
    np.testing.assert_allclose(model(x), want, rtol=1e-4, atol=1e-5)
    assert not np.allclose(model(x), layer.project(attention_impl(q, k, v, **pattern)), atol=1e-3)
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras")(x), model(x))
    with pytest.raises(ValueError, match="causal=False has no decode_step"):
        layer.decode_step(2, 64)
    with pytest.raises(ValueError, match="causal=False were given"):
        SparseSelfAttention(2, sees=lambda i, j: j <= i, causal=False)


def test_a_predicate_that_can_change_is_refused():
    @dataclasses.dataclass
    class Within:
        reach: int

        def __call__(self, query, key):
            return (key <= query) & (query - key < self.reach)

    with pytest.raises(TypeError, match=r"sees is .*Within\(reach=4\), which can change and has no hash"):
        SparseSelfAttention(2, blocksize=8, sees=Within(4))


@pytest.mark.parametrize("layer", [SparseSelfAttention, SparseTransformerBlock])
@pytest.mark.parametrize("shape", [[64, 32], [2, 3, 64, 32]])
def test_tensors_of_two_or_four_axes_are_refused(layer, shape):
    with pytest.raises(ValueError, match=f"expected ndim=3, found ndim={len(shape)}"):
        layer(4)(tf.ones(shape))


@pytest.mark.parametrize("layer", [SparseSelfAttention, SparseTransformerBlock])
def test_a_width_that_nobody_knows_is_refused(layer):
    with pytest.raises(
        ValueError, match="the input's width is not known; give the last dimension of the shape"
    ):
        keras.Sequential([keras.Input((32, None)), layer(2, "local", 16, 8)])
