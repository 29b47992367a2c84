"""The interface of OpenAI's BlocksparseTransformer: its tables, its three steps and what they refuse."""

import copy
import inspect
import pickle

import numpy as np
import oracle
import pytest
import tensorflow as tf
from layouts import causal, checkers

from blocksparse import BlocksparseTransformer

SIZES = (8, 16, 32, 64, 128)
EPSILON = 2**-20


def make(lut_heads=1, heads=2, block_size=8, callback=causal, shape=(3, 3)):
    layout = np.tri(*shape, dtype=bool)
    return BlocksparseTransformer(np.stack([layout] * lut_heads), block_size, heads, callback)


def test_attributes():
    bst = make()
    assert (bst.blk_size, bst.blk_shape, bst.heads, bst.lut_heads, bst.name) == (8, (8, 8), 2, 1, None)
    assert (bst.ctx_blks_q, bst.ctx_blks_k, bst.blocks, bst.nn_max, bst.tn_max) == (3, 3, 6, 3, 3)
    assert bst.nt_list == [[(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)]]
    assert bst.nn_list == [[[(0, 0)], [(1, 0), (2, 1)], [(3, 0), (4, 1), (5, 2)]]]
    assert bst.tn_list == [[[(0, 0), (1, 1), (3, 2)], [(2, 1), (4, 2)], [(5, 2)]]]
    assert bst.nt_lut.dtype == bst.nn_lut.dtype == bst.tn_lut.dtype == np.int32
    np.testing.assert_array_equal(bst.nt_lut, bst.nt_list)
    assert bst.nn_lut.tolist() == [[[3, 1], [4, 2], [6, 3], [0, 0], [1, 0], [2, 1], [3, 0], [4, 1], [5, 2]]]
    assert bst.tn_lut.tolist() == [[[3, 3], [6, 2], [8, 1], [0, 0], [1, 1], [3, 2], [2, 1], [4, 2], [5, 2]]]
    assert bst.block_coord(4) == (2, 1) and make(2).block_coord(4, head=1) == (2, 1)


def test_empty_rows_and_columns_have_empty_entries():
    bst = BlocksparseTransformer(np.array([[0, 1, 0], [0, 0, 0]]), 8, 1)
    assert bst.nn_list == [[[(0, 1)], []]] and bst.tn_list == [[[], [(0, 0)], []]]
    assert bst.nn_lut.tolist() == [[[2, 1], [3, 0], [0, 1]]] and (bst.nn_max, bst.tn_max) == (1, 1)
    assert bst.softmax_mask is None and bst.softmax_mask_np is None


@pytest.mark.parametrize("block_size", SIZES)
def test_softmax_mask_packing(block_size):
    """Bit k of row q is set where q sees k: uint8 to uint64, and two words of uint64 for blocks of 128."""
    bst = make(2, 2, block_size, checkers)
    words, width = max(1, block_size // 64), min(block_size, 64)
    assert bst.softmax_mask_np.dtype == f"uint{width}"
    assert bst.softmax_mask_np.shape == (2, 6, block_size) + (words,) * (words > 1)
    np.testing.assert_array_equal(bst.softmax_mask, bst.softmax_mask_np.swapaxes(1, 2))
    grid = (
        bst.softmax_mask_np.reshape(2, 6, block_size, words, 1) >> np.arange(width, dtype=f"uint{width}") & 1
    )
    for head in range(2):
        for block, (q, k) in enumerate(bst.nt_list[head]):
            seen = checkers((block_size, block_size), head, q, k, block)
            np.testing.assert_array_equal(grid[head, block].reshape(seen.shape), seen)


def steps(bst, q, k, v, scale, dout, **softmax):
    with tf.GradientTape() as tape:
        tape.watch([q, k, v])
        w = bst.query_key_op(q, k)
        a = bst.masked_softmax(w, scale=scale, **softmax)
        y = bst.weight_value_op(a, v)
    return w, a, y, *tape.gradient(y, [q, k, v], dout)


@pytest.mark.parametrize("block_size", SIZES)
@pytest.mark.parametrize(
    ("lut_heads", "callback", "shape"), [(1, causal, (3, 3)), (2, checkers, (2, 3)), (2, None, (3, 2))]
)
def test_three_steps(block_size, lut_heads, callback, shape):
    """Against the float64 oracle and against the NumPy oracles that OpenAI's tests use."""
    bst = make(lut_heads, 2, block_size, callback, shape)
    generator = np.random.default_rng(block_size)
    q, k, v, dout = (
        generator.standard_normal((2, blocks * block_size, 2 * d)).astype(np.float32)
        for blocks, d in zip((*shape, shape[1], shape[0]), (6, 6, 5, 5), strict=True)
    )
    got = steps(bst, *map(tf.constant, (q, k, v)), 0.4, tf.constant(dout))
    visible = oracle.dense_mask(np.stack([np.tri(*shape)] * lut_heads), block_size, callback, 2)
    out, _, *gradients = oracle.attention(q, k, v, visible, 0.4, dout)
    for name, x, truth in zip(("y", "dq", "dk", "dv"), got[2:], (out, *gradients), strict=True):
        oracle.assert_close(name, x, truth, EPSILON)
    w = bst.nt_test(q, k)
    a = bst.masked_softmax_test(w, 0.4) if callback else got[1].numpy()
    dw = bst.masked_softmax_grad_test(bst.nt_test(dout, v), a, 0.4)
    twins = w, a, bst.nn_test(a, v), bst.nn_test(dw, k), bst.tn_test(dw, q), bst.tn_test(a, dout)
    for name, x, truth in zip("waydkv", got, twins, strict=True):
        oracle.assert_close(name, x, truth, EPSILON)
    oracle.assert_close("tn", bst.tn_op(w, dout), bst.tn_test(w, dout), EPSILON)
    fused = bst.attention(*map(tf.constant, (q, k, v)), scale=0.4)
    oracle.assert_close("fused", fused, out, EPSILON)


@pytest.mark.parametrize("key", [0, 5, 8, 13, 23])
def test_autoregress_at_key(key):
    """Keys before `key` as the mask says; keys from there on only for queries at or after them."""
    bst = make(2, 2, 8, checkers, (3, 3))
    x = np.random.default_rng(key).standard_normal((1, 2, 6, 8, 8)).astype(np.float32)
    visible = oracle.dense_mask(np.stack([np.tri(3)] * 2), 8, checkers)
    i, j = np.indices((24, 24))
    visible &= (j < key) | (j <= i)
    for given in (key, tf.constant(key), tf.constant(key, tf.int64)):
        y = bst.masked_softmax(tf.constant(x), scale=0.7, autoregress_at_key=given).numpy()
        oracle.assert_close("numpy", y, bst.masked_softmax_test(x, 0.7, key), EPSILON)
        for head in range(2):
            s = np.full((24, 24), -np.inf)
            dense = np.zeros((24, 24))
            for block, (q, k) in enumerate(bst.nt_list[head]):
                where = slice(8 * q, 8 * q + 8), slice(8 * k, 8 * k + 8)
                s[where] = 0.7 * x[0, head, block]
                dense[where] = y[0, head, block]
            p = np.exp(np.where(visible[head], s, -np.inf))
            total = p.sum(1, keepdims=True)
            oracle.assert_close("dense", dense, p / np.where(total, total, 1), EPSILON)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_dtypes(dtype):
    bst = make()
    q, k, v = (tf.cast(tf.random.stateless_normal([1, 24, 8], [1, i]), dtype) for i in range(3))
    w = bst.query_key_op(q, k)
    a = bst.masked_softmax(w)
    assert (w.dtype, a.dtype, bst.weight_value_op(a, v).dtype) == (tf.float32, dtype, dtype)
    assert bst.softmax(w).dtype == dtype and bst.softmax(w, dtype=tf.bfloat16).dtype == tf.bfloat16
    assert bst.nt_op(q, k).dtype == tf.float32 and bst.tn_op(w, v).dtype == dtype
    assert make().softmax(tf.cast(w, dtype)).dtype == dtype
    out, lse = bst.attention(q, k, v, with_lse=True)
    assert out.dtype == dtype and lse.dtype == tf.float32
    with tf.GradientTape() as tape:
        tape.watch([q, k, v])
        y = bst.weight_value_op(bst.masked_softmax(bst.query_key_op(q, k)), v)
    assert [x.dtype for x in tape.gradient(y, [q, k, v])] == [dtype] * 3


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda bst: pickle.loads(pickle.dumps(bst))])
def test_copies_compute_the_same(twin):
    """Also of one that was used before, whose plans and tables stay behind or go along."""
    x = tf.constant(np.random.default_rng(0).standard_normal((1, 24, 16)), tf.float32)

    def both(bst):
        w = bst.masked_softmax(bst.query_key_op(x, x), scale=0.3)
        return bst.attention(x, x, x), bst.weight_value_op(w, x)

    bst = make(callback=lambda *block: causal(*block))  # nothing that pickle knows, but it has been evaluated
    unused, expected = twin(bst), both(bst)
    for other in (unused, twin(bst)):
        for got, want in zip(both(other), expected, strict=True):
            np.testing.assert_array_equal(got, want)


def test_different_numbers_of_blocks_need_the_fused_attention():
    bst = BlocksparseTransformer(np.stack([np.tri(3), np.eye(3)]), 8)
    x = tf.random.stateless_normal([1, 24, 16], [0, 0])
    assert bst.attention(x, x, x).shape == (1, 24, 16)
    for wrong in (lambda: bst.blocks, lambda: bst.nn_lut, lambda: bst.query_key_op(x, x)):
        with pytest.raises(
            ValueError, match=r"different numbers of active blocks \(3, 6\); the separate steps"
        ):
            wrong()


def test_no_block_at_all():
    bst = BlocksparseTransformer(np.zeros((3, 3)), 8, 2)
    out, lse = bst.attention(X, X, X, with_lse=True)
    assert not out.numpy().any() and np.isneginf(lse).all() and bst.blocks == 0
    with pytest.raises(ValueError, match="layout has no active block; the separate steps need one"):
        bst.query_key_op(X, X)


X = np.zeros((2, 24, 16), np.float32)
W = np.zeros((2, 2, 6, 8, 8), np.float32)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda b: b.attention(X[0], X, X),
            ValueError,
            r"q has shape \(24, 16\); it has to be \[batch, 24, 2 heads \* d\]",
        ),
        (lambda b: b.attention(X, X[:, :16], X), ValueError, r"k has shape \(2, 16, 16\).*\(3 blocks of 8\)"),
        (
            lambda b: b.attention(X, X, X[..., :15]),
            ValueError,
            "heads=2 does not divide the width of v, 15; nearest width: 16",
        ),
        (
            lambda b: b.attention(X, X[..., :8], X),
            ValueError,
            "q has 16, k has 8 as its width; give all of them the same",
        ),
        (lambda b: b.attention(X, X[:1], X), ValueError, "q has 2, k has 1, v has 2 as its batch"),
        (
            lambda b: b.attention(X.astype(float), X, X),
            TypeError,
            "q is float64; cast it to float16, bfloat16 or float32",
        ),
        (
            lambda b: b.attention(X, X, X.astype("f2")),
            TypeError,
            "q is float32, k float32, v float16; cast them to one",
        ),
        (lambda b: b.attention(X, X, X, order=2), ValueError, "order=2 has to divide query time 24"),
        (
            lambda b: b.attention(X, X, X, order=[1, 1, 1]),
            ValueError,
            r"order has 3 numbers; give one, or one for each of 2",
        ),
        (
            lambda b: b.attention(X, X, X, scale="x"),
            TypeError,
            "scale is 'x'; it has to be a number, or a scalar",
        ),
        (
            lambda b: b.attention(X, X, X, scale=tf.ones(2)),
            ValueError,
            r"scale is float32 of shape \(2,\); it has to",
        ),
        (
            lambda b: b.softmax(b.nt_op(X, X), scale=tf.constant(2)),
            ValueError,
            r"scale is int32 of shape \(\)",
        ),
        (lambda b: b.query_key_op(X, X[..., :8]), ValueError, "a has 16, b has 8 as its width"),
        (
            lambda b: b.weight_value_op(W[:, :1], X),
            ValueError,
            r"a has shape .*; it has to be \[batch, 2, 6, 8, 8\]",
        ),
        (
            lambda b: b.masked_softmax(W[..., :4]),
            ValueError,
            r"x has shape .*; it has to be \[batch, 2, 6, 8, 8\]",
        ),
        (lambda b: b.softmax(W.astype(int)), TypeError, "x is int64; cast it"),
        (
            lambda b: b.masked_softmax(W, autoregress_at_key=24),
            ValueError,
            "autoregress_at_key=24 is no key; .* 0 to 23",
        ),
        *(
            (
                lambda b, key=key: b.masked_softmax(W, autoregress_at_key=key),
                TypeError,
                "it has to be an int or a scalar integer tensor",
            )
            for key in (1.5, True, "a", [3], tf.constant(3.9), tf.constant([3, 4]))
        ),
        *(
            (
                lambda b, order=order: b.attention(X, X, X, order=order),
                TypeError,
                "it has to be a positive int, or one for each head",
            )
            for order in (1.9, [1, 1.9], None, "a", 2**70)
        ),
        (lambda b: b.block_coord(6), IndexError, "range"),
        (
            lambda _: make(callback="causal"),
            TypeError,
            "mask_callback is 'causal'; give None or a function of",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(make())


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("kind", ["tensor", "variable"])
def test_a_learned_scale_gets_its_gradient(kind, graph):
    """d loss / d scale, of all three functions that take one, is what multiplying it in by hand gives."""
    bst = make(callback=causal)
    random = np.random.default_rng(0)
    q, k, v = (tf.constant(random.standard_normal((2, 24, 8)), tf.float32) for _ in "qkv")
    ways = {
        "masked_softmax": lambda s: bst.weight_value_op(
            bst.masked_softmax(bst.query_key_op(q, k), scale=s), v
        ),
        "softmax": lambda s: bst.weight_value_op(bst.softmax(bst.query_key_op(q, k), scale=s), v),
        "attention": lambda s: bst.attention(q, k, v, scale=s),
    }
    by_hand = dict(
        ways,
        masked_softmax=lambda s: bst.weight_value_op(bst.masked_softmax(bst.query_key_op(q * s, k)), v),
        softmax=lambda s: bst.weight_value_op(bst.softmax(bst.query_key_op(q * s, k)), v),
        attention=lambda s: bst.attention(q * s, k, v, scale=1.0),
    )

    def derivative(way, given):
        learned = tf.Variable(0.3)

        def step():
            with tf.GradientTape() as tape:
                scale = learned if given == "variable" else tf.exp(tf.math.log(learned))
                loss = tf.reduce_sum(way(scale) ** 2)
            return loss, tape.gradient(loss, learned)

        return (tf.function(step) if graph else step)()

    for name, way in ways.items():
        got, want = derivative(way, kind), derivative(by_hand[name], "tensor")
        np.testing.assert_allclose(got, want, rtol=1e-5, err_msg=name)
        assert abs(got[1]) > 1e-3


def test_unknown_time_is_refused_with_the_repair():
    bst = make()

    @tf.function(input_signature=[tf.TensorSpec([2, None, 16])])
    def step(x):
        return bst.attention(x, x, x)

    with pytest.raises(ValueError, match=r"q has shape \(2, None, 16\).*tf.ensure_shape states a shape"):
        step.get_concrete_function()


def test_autoregress_needs_a_mask():
    with pytest.raises(
        ValueError, match="autoregress_at_key needs a BlocksparseTransformer with a mask_callback"
    ):
        make(callback=None).masked_softmax(W, autoregress_at_key=3)


def test_autograph_leaves_the_planner_alone():
    """It takes seconds to rewrite, in the first trace of every program."""
    rewritten = set()

    def watched(*args):
        rewritten.update(frame.function for frame in inspect.stack() if frame.function.startswith("tf__"))
        return causal(*args)

    @tf.function
    def traced(x):
        bst = make(callback=watched)
        weights = bst.masked_softmax(bst.query_key_op(x, x), scale=8**-0.5)
        return bst.attention(x, x, x), bst.weight_value_op(weights, x)

    np.testing.assert_allclose(*traced(tf.random.stateless_normal([1, 24, 16], [0, 1])), atol=1e-5)
    assert rewritten == {"tf__make", "tf__traced"}  # this file's own


def test_masks_are_traced_as_bytes():
    """TensorFlow makes a graph's bool constants one element at a time."""
    bst = make(block_size=64)

    @tf.function
    def traced(x):
        return bst.masked_softmax(bst.query_key_op(x, x), autoregress_at_key=3)

    graph = traced.get_concrete_function(tf.TensorSpec([1, 192, 16])).graph
    constants = [op for op in graph.get_operations() if op.type == "Const" and op.outputs[0].dtype == tf.bool]
    assert sum(op.outputs[0].shape.num_elements() for op in constants) < 64
