"""Several passes in one softmax: values and gradients against the float64 oracle over the union of their keys."""

import numpy as np
import oracle
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layouts import SEGMENTS, segments

from blocksparse import BlocksparseTransformer
from blocksparse.fused import op
from sparse_attention import attention_impl, blocksparse_attention_impl

EPSILON = {"float32": 2**-21, "float16": 2**-10, "bfloat16": 2**-7}
NAMES = ("out", "lse", "dq", "dk", "dv")


def shown_by(visible, block_size, order):
    """The object that shows `visible`, bool [heads, query_time, key_time] in tensor order, in rows of this order."""
    heads, query_time, key_time = visible.shape
    rows, columns = oracle.plan_order(query_time, order), oracle.plan_order(key_time, order)
    grid = visible[:, rows][:, :, columns]
    blocks = grid.reshape(heads, query_time // block_size, block_size, key_time // block_size, block_size)

    def callback(blk_shape, head_idx, qry_idx, key_idx, blk_idx):
        return blocks[head_idx, qry_idx, :, key_idx]

    return BlocksparseTransformer(blocks.any((2, 4)), block_size, heads, callback)


def draw_passes(generator, heads, query_time, key_time, shares):
    """Who sees whom in each pass, no pair in two: a pair is in pass p with chance shares[p], else in none.

    Some rows see nothing in one pass, some nothing at all.
    """
    which = generator.choice(len(shares) + 1, (heads, query_time, key_time), p=[*shares, 1 - sum(shares)])
    passes = [which == number for number in range(len(shares))]
    for number, visible in enumerate(passes):
        visible[:, number :: len(passes) + 3] = False
    for visible in passes:
        visible[:, 5::7] = False
        visible[0, : query_time // 2] = False
    return passes


def attend(bsts, orders, scale, **more):
    (first, *others), (order, *rest) = bsts, orders
    joined = list(zip(others, rest, strict=True))
    return lambda *x: first.attention(*x, scale=scale, order=order, joined=joined, with_lse=True, **more)


def gradients(function, inputs, dout, dlse):
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        out, lse = function(*inputs)
    return out, lse, *tape.gradient([out, lse], inputs, [dout, dlse])


def inputs_of(generator, dtype, shapes, batch=2):
    return [tf.cast(generator.standard_normal((batch, *shape)), dtype) for shape in shapes]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_values_and_gradients(kernels, data):
    dtype, bs = data.draw(st.sampled_from(list(EPSILON))), data.draw(st.sampled_from([8, 16, 32]))
    heads, head_dim, value_dim = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([8, 24])), 16
    query_time, key_time = (12 * bs // data.draw(st.sampled_from([1, 2, 3])) for _ in range(2))
    orders = data.draw(st.lists(st.sampled_from([1, 2]), min_size=2, max_size=3))
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    passes = draw_passes(generator, heads, query_time, key_time, [0.3] * len(orders))
    bsts = [shown_by(visible, bs, order) for visible, order in zip(passes, orders, strict=True)]
    widths = head_dim, head_dim, value_dim, value_dim
    times = query_time, key_time, key_time, query_time
    shapes = [(time, heads * width) for time, width in zip(times, widths, strict=True)]
    *inputs, dout = inputs_of(generator, dtype, shapes)
    dlse = tf.constant(generator.standard_normal((2, heads, query_time)), tf.float32)
    visible, numbers = sum(passes) > 0, None
    if kind := data.draw(st.sampled_from([None, *SEGMENTS])):
        numbers, meeting = segments(generator, kind, 2, query_time, key_time)
        visible = visible & meeting
    got = gradients(attend(bsts, orders, 0.4, segment_ids=numbers), inputs, dout, dlse)
    want = oracle.attention(*(x.numpy() for x in inputs), visible, 0.4, dout.numpy(), dlse.numpy())
    for name, x, truth in zip(NAMES, got, want, strict=True):
        assert x.dtype == ("float32" if name == "lse" else dtype)
        epsilon = EPSILON["float32"] * 8 if name == "lse" else EPSILON[dtype]
        oracle.assert_close(name, tf.cast(x, tf.float64), truth, epsilon)


@pytest.mark.parametrize("shares", [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0)], ids=str)
def test_passes_that_show_nothing(kernels, shares):
    generator = np.random.default_rng(1)
    passes = [np.full((2, 64, 64), share > 0) for share in shares]
    bsts = [shown_by(visible, 16, 1) for visible in passes]
    *inputs, dout = inputs_of(generator, tf.float32, [(64, 32)] * 4)
    dlse = tf.zeros([2, 2, 64])
    got = gradients(attend(bsts, (1, 1), 0.25), inputs, dout, dlse)
    want = oracle.attention(*(x.numpy() for x in inputs), sum(passes) > 0, 0.25, dout.numpy(), dlse.numpy())
    for name, x, truth in zip(NAMES, got, want, strict=True):
        oracle.assert_close(name, x, truth, EPSILON["float32"])


@pytest.mark.parametrize("first", [True, False])
def test_a_nan_key_reaches_the_queries_that_see_it(kernels, first):
    generator, at = np.random.default_rng(2), 100
    near = np.tri(128, dtype=bool) & ~np.tri(128, k=-20, dtype=bool)
    far = np.tri(128, k=-20, dtype=bool) & (np.arange(128)[:, None] % 4 == np.arange(128) % 4)
    passes, orders = ([near[None], far[None]], [1, 4]) if first else ([far[None], near[None]], [4, 1])
    bsts = [shown_by(visible, 8, order) for visible, order in zip(passes, orders, strict=True)]
    q, k, v, dout = (x.numpy() for x in inputs_of(generator, tf.float32, [(128, 16)] * 4))
    k[0, at] = np.nan
    sees = (near | far)[:, at]
    reached = (near | far)[sees].any(0)  # through their weights, all of which are NaN
    out, lse, dq, dk, dv = gradients(
        attend(bsts, orders, 0.3),
        [tf.constant(x) for x in (q, k, v)],
        tf.constant(dout),
        tf.zeros([2, 1, 128]),
    )
    for name, x, due in (("out", out, sees), ("dq", dq, sees), ("dk", dk, reached), ("dv", dv, reached)):
        assert not np.isnan(x[1]).any(), name
        np.testing.assert_array_equal(np.isnan(x[0]).any(1), due, err_msg=name)
    np.testing.assert_array_equal(np.isnan(lse[0, 0]), sees)


MODES = ["local+strided", ("local+strided", "local"), ("strided", "local+strided", "chunk+strided")]


def step_of(mode):
    def step(q, k, v, dout):
        with tf.GradientTape() as tape:
            tape.watch([q, k, v])
            out = blocksparse_attention_impl(q, k, v, 6, mode, local_attn_ctx=16, blocksize=8)
        return out, *tape.gradient(out, [q, k, v], dout)

    return step


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("dtype", list(EPSILON))
def test_the_same_bits_eagerly_in_functions_and_under_xla(monkeypatch, mode, dtype):
    monkeypatch.setenv("BLOCKSPARSE_KERNELS", "auto")
    if op.kernel_name() == "reference":
        pytest.skip("no C++ compiler")
    step, inputs = step_of(mode), inputs_of(np.random.default_rng(3), dtype, [(128, 48)] * 4)
    compiled = tf.function(step, jit_compile=True)
    types = {each.type for each in compiled.get_concrete_function(*inputs).graph.get_operations()}
    if "BlocksparseJoinedAttention" not in types:
        pytest.skip("this TensorFlow ships no headers for calls from XLA")
    assert "BlocksparseJoinedAttentionGrad" in types
    eager = step(*inputs)
    for other in (step(*inputs), tf.function(step)(*inputs), compiled(*inputs)):
        for a, b in zip(eager, other, strict=True):
            assert a.numpy().tobytes() == b.numpy().tobytes()


def test_one_operation_each_way(monkeypatch):
    """No join of TensorFlow's operations is left between the passes."""
    monkeypatch.setenv("BLOCKSPARSE_KERNELS", "auto")
    if op.kernel_name() == "reference":
        pytest.skip("no C++ compiler")
    inputs = inputs_of(np.random.default_rng(4), tf.float32, [(128, 48)] * 4)
    graph = tf.function(step_of("local+strided")).get_concrete_function(*inputs).graph
    trivial = {
        "Placeholder",
        "Identity",
        "IdentityN",
        "Const",
        "NoOp",
        "ZerosLike",
        "Shape",
        "StridedSlice",
        "Fill",
        "Pack",
    }
    found = [each.type for each in graph.get_operations() if each.type not in trivial]
    assert sorted(found) == ["BlocksparseJoinedAttention", "BlocksparseJoinedAttentionGrad"]


def test_no_second_derivative(kernels):
    inputs = inputs_of(np.random.default_rng(5), tf.float32, [(64, 48)] * 3, batch=1)
    with tf.GradientTape() as outer:
        outer.watch(inputs)
        with tf.GradientTape() as inner:
            inner.watch(inputs)
            y = blocksparse_attention_impl(*inputs, 6, "local+strided", local_attn_ctx=8, blocksize=8)
        gradient = inner.gradient(y, inputs)
    with pytest.raises(LookupError, match="no second derivative"):
        outer.gradient(gradient, inputs)


def test_objects_that_do_not_fit_are_refused():
    first = BlocksparseTransformer(np.tri(4, dtype=bool), 16, 2)
    other = BlocksparseTransformer(np.tri(8, dtype=bool), 16, 2)
    x = tf.zeros([1, 64, 32])
    wanted = "joined has an object of 2 heads, 128 queries and 128 keys; all passes need the first one's 2 heads, 64"
    with pytest.raises(ValueError, match=wanted):
        first.attention(x, x, x, joined=[(other, 1)])
    with pytest.raises(ValueError, match="order"):
        first.attention(x, x, x, joined=[(first, [1, 1, 1])])


@pytest.fixture
def numerics():
    tf.debugging.enable_check_numerics()
    yield
    tf.debugging.disable_check_numerics()


@pytest.mark.parametrize("function", [attention_impl, blocksparse_attention_impl])
@pytest.mark.parametrize("mode", ["all", "local", "strided", "chunk", "summary", "fixed", "local+strided"])
@pytest.mark.parametrize("graph", [False, True])
def test_a_hunt_for_nan_passes_healthy_attention_and_finds_nan(kernels, numerics, function, mode, graph):
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x, x, x, 2, mode, local_attn_ctx=8, blocksize=8, num_verts=1, vertsize=1)
        return y, tape.gradient(y, x)

    step = tf.function(step) if graph else step
    x = np.random.default_rng(6).standard_normal((1, 64, 16)).astype(np.float32)
    assert all(np.isfinite(each).all() for each in step(tf.constant(x)))
    x[0, 20, 3] = np.nan
    with pytest.raises(tf.errors.InvalidArgumentError, match="NaN"):
        step(tf.constant(x))
