"""Query heads that share key heads: values, gradients and plans, for every kernel that this machine has."""

import numpy as np
import oracle
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layouts import causal, dense

from blocksparse import BlocksparseTransformer
from blocksparse.fused import op
from blocksparse.native import devices
from blocksparse.native.compiler import BuildError
from blocksparse.plan import build_blocks, make_plan, pack, unpack
from blocksparse.plan.blob import Word, digest

EPSILON = {"float32": 2**-21, "float16": 2**-10, "bfloat16": 2**-7}
NAMES = ("out", "lse", "dq", "dk", "dv")


def ragged(seed, alike):
    """Whole, empty and ragged blocks; heads h and h + alike are alike."""

    def callback(blk_shape, head_idx, qry_idx, key_idx, blk_idx):
        generator = np.random.default_rng([seed, head_idx % alike, qry_idx, key_idx])
        return generator.random(blk_shape) < (1.0, 0.0, 0.5, 0.9)[generator.integers(4)]

    return callback


def run(attend, tensors, dout, dlse):
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        out, lse = attend(*tensors)
    return out, lse, *tape.gradient([out, lse], tensors, [dout, dlse])


def draw_tensors(generator, heads, kv_heads, times, dims, dtype="float32", batch=2):
    """q, k, v, dout of a dtype, and dlse."""
    counts, widths = (heads, kv_heads, kv_heads, heads), (dims[0], dims[0], dims[1], dims[1])
    shapes = zip((times[0], times[1], times[1], times[0]), counts, widths, strict=True)
    tensors = [tf.cast(generator.standard_normal((batch, t, n * d)), dtype) for t, n, d in shapes]
    return *tensors, tf.constant(generator.standard_normal((batch, heads, times[0])), tf.float32)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_values_and_gradients(kernels, data):
    """One layout for all heads or one for each, some alike; one order or several, also inside a group."""
    dtype, bs = data.draw(st.sampled_from(list(EPSILON))), data.draw(st.sampled_from([8, 16, 32]))
    kv_heads, group = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([2, 3, 4]))
    heads, alike = kv_heads * group, data.draw(st.integers(1, 5))
    blocks = [6 // data.draw(st.sampled_from([1, 2, 3])) for _ in range(2)]
    orders = [s for s in (1, 2, 3) if blocks[0] % s == 0 and blocks[1] % s == 0]
    order = data.draw(
        st.sampled_from(orders) | st.lists(st.sampled_from(orders), min_size=heads, max_size=heads)
    )
    dims = data.draw(st.sampled_from([8, 24])), 16
    seed = data.draw(st.integers(0, 2**32 - 1))
    generator, callback = np.random.default_rng(seed), ragged(seed, alike)
    layout = generator.random((1 if alike == 1 else heads, *blocks)) < 0.7
    *inputs, dout, dlse = draw_tensors(generator, heads, kv_heads, [bs * n for n in blocks], dims, dtype)
    bst = BlocksparseTransformer(layout, bs, heads, callback)
    settings = dict(scale=0.4, order=order, with_lse=True, kv_heads=kv_heads)
    got = run(lambda *x: bst.attention(*x, **settings), inputs, dout, dlse)
    visible = oracle.dense_mask(layout, bs, callback, heads, order)
    numbers = [tf.cast(x, tf.float64).numpy() for x in inputs]
    want = oracle.attention(*numbers, visible, 0.4, tf.cast(dout, tf.float64).numpy(), dlse.numpy())
    for name, x, truth in zip(NAMES, got, want, strict=True):
        assert x.dtype == ("float32" if name == "lse" else dtype)
        oracle.assert_close(name, tf.cast(x, tf.float64), truth, EPSILON[x.dtype.name], slack=16)


@pytest.fixture
def small():
    """An object of 6 heads with two layouts, and what it takes with 2 key heads."""
    layout = np.stack([np.tri(4), np.eye(4)] * 3).astype(bool)
    return BlocksparseTransformer(layout, 16, 6, causal), draw_tensors(
        np.random.default_rng(1), 6, 2, (64, 64), (8, 8)
    )


def test_joined_passes(kernels):
    """Of which one has an order that differs inside a group."""
    generator, (heads, kv_heads, n) = np.random.default_rng(2), (4, 2, 64)
    lower = BlocksparseTransformer(np.eye(4, dtype=bool), 16, heads, causal)
    rest = BlocksparseTransformer(np.tri(4, k=-1).astype(bool), 16, heads)
    orders = [1, 2, 2, 2]
    rows = [oracle.plan_order(n, each) for each in orders]
    visible = np.zeros((heads, n, n), bool)
    for head, row in enumerate(rows):
        visible[head][np.ix_(row, row)] = np.tri(n) * np.kron(np.tri(4), np.ones((16, 16)))
    *inputs, dout, dlse = draw_tensors(generator, heads, kv_heads, (n, n), (8, 16))

    def attend(*x):
        joined = [(rest, orders)]
        return lower.attention(*x, 0.3, orders, with_lse=True, joined=joined, kv_heads=kv_heads)

    numbers = [x.numpy() for x in inputs]
    want = oracle.attention(*numbers, visible, 0.3, dout.numpy(), dlse.numpy())
    for name, x, truth in zip(NAMES, run(attend, inputs, dout, dlse), want, strict=True):
        oracle.assert_close(name, x, truth, EPSILON["float32"])


def test_one_key_head_a_head_is_what_there_was(kernels, small):
    bst, (q, _, _, dout, dlse) = small
    q, k, v = (tf.roll(q, shift, 1) for shift in range(3))
    plain = run(lambda *x: bst.attention(*x, with_lse=True), [q, k, v], dout, dlse)
    said = run(lambda *x: bst.attention(*x, with_lse=True, kv_heads=6), [q, k, v], dout, dlse)
    for a, b in zip(plain, said, strict=True):
        np.testing.assert_array_equal(a, b)


def test_results_are_those_of_keys_repeated_for_each_head(kernels, small):
    bst, (q, k, v, *_) = small
    k_all, v_all = (
        tf.reshape(tf.repeat(tf.reshape(x, [2, 64, 2, 8]), 3, axis=2), [2, 64, 48]) for x in (k, v)
    )
    shared, repeated = bst.attention(q, k, v, kv_heads=2), bst.attention(q, k_all, v_all)
    if kernels == "auto":
        np.testing.assert_array_equal(shared, repeated)
    else:
        np.testing.assert_allclose(shared, repeated, atol=1e-6)


def test_every_way_of_running_has_the_same_bits(small):
    """Eagerly twice, in a function, as its own gradient, and compiled by XLA."""
    bst, (*inputs, dout, dlse) = small
    if op.kernel_name() == "reference":
        pytest.skip("no C++ compiler")

    def step(*x):
        return run(lambda *y: bst.attention(*y, with_lse=True, kv_heads=2), list(x), dout, dlse)

    first = step(*inputs)
    ways = {"again": step(*inputs), "graph": tf.function(step)(*inputs)}
    try:
        devices.xla_library()
        ways["xla"] = tf.function(step, jit_compile=True)(*inputs)
    except BuildError:
        pass  # of plain TensorFlow XLA makes other sums
    for way, results in ways.items():
        for name, a, b in zip(NAMES, first, results, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=f"{way}: {name}")
    q, k, v = inputs
    out, lse = bst.attention(q, k, v, with_lse=True, kv_heads=2)
    zero = run(lambda *x: bst.attention(*x, with_lse=True, kv_heads=2), inputs, dout, tf.zeros_like(dlse))
    by_hand = bst.attention_grad(q, k, v, out, lse, dout, kv_heads=2)
    for name, a, b in zip(NAMES[2:], zero[2:], by_hand, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)


def test_keys_are_read_in_place(small):
    """The graph of both passes holds the two operations and nothing that repeats, gathers or sums."""
    bst, (*inputs, dout, dlse) = small
    if op.kernel_name() == "reference":
        pytest.skip("no C++ compiler")
    step = tf.function(
        lambda *x: run(lambda *y: bst.attention(*y, with_lse=True, kv_heads=2), list(x), dout, dlse)
    )
    made = {each.type for each in step.get_concrete_function(*inputs).graph.get_operations()}
    assert made <= {
        "BlocksparseAttention", "BlocksparseAttentionGrad", "Placeholder", "Const", "Identity", "Shape", "Fill",
        "ZerosLike",
    }  # fmt: skip


def test_a_saved_model_keeps_them(small, tmp_path):
    bst, (*inputs, _, _) = small
    module = tf.Module()
    signature = [tf.TensorSpec([None, *x.shape[1:]]) for x in inputs]
    module.attend = tf.function(
        lambda q, k, v: bst.attention(q, k, v, kv_heads=2), input_signature=signature, autograph=False
    )
    tf.saved_model.save(module, str(tmp_path))
    np.testing.assert_array_equal(
        tf.saved_model.load(str(tmp_path)).attend(*inputs), bst.attention(*inputs, kv_heads=2)
    )


def test_a_nan_key_reaches_those_who_see_it(kernels):
    """In every query head that reads it, and no other."""
    bst = BlocksparseTransformer(dense(2), 16, 4, causal)
    q, k, v, dout, dlse = draw_tensors(np.random.default_rng(3), 4, 2, (32, 32), (8, 8), batch=1)
    poisoned = k.numpy()
    poisoned[0, 20, :8] = np.nan
    out, _, dq, dk, dv = run(
        lambda *x: bst.attention(*x, with_lse=True, kv_heads=2), [q, tf.constant(poisoned), v], dout, dlse
    )
    for name, x in (("out", out), ("dq", dq)):
        bad = np.isnan(x.numpy()).reshape(32, 4, 8).any(2)
        assert bad[20:, :2].all() and not bad[:20].any() and not bad[:, 2:].any(), name
    for name, x in (("dk", dk), ("dv", dv)):
        bad = np.isnan(x.numpy()).reshape(32, 2, 8).any(2)
        assert bad[:, 0].all() and not bad[:, 1].any(), name


def plan_of(heads=4, kv_heads=2, order=1):
    layout = np.stack([np.tri(6), np.eye(6)] * (heads // 2)).astype(bool)
    return make_plan(build_blocks(layout, 8, causal), order, heads, (16, 16), (32, 16), kv_heads)


def test_a_plan_by_key_shows_each_reader_its_keys():
    """Column c of key head h is query c % n of its reader c // n."""
    plan = plan_of(order=2)
    side, n, seen = plan.by_key, plan.query_time, np.zeros((4, 48, 48), bool)
    for key_head, distinct in enumerate(plan.key_index):
        for tile in range(side.head_tiles[distinct], side.head_tiles[distinct + 1]):
            keys = (side.rows[tile][:, None] * side.granule + np.arange(side.granule)).reshape(-1)
            for column in range(side.offset[tile], side.offset[tile + 1]):
                queries = (side.columns[column][:, None] * side.granule + np.arange(side.granule)).reshape(-1)
                bits = side.masks[side.mask[column], :, 0][:, None] >> np.arange(16) & 1
                bits = bits if column >= side.offset[tile] + side.full[tile] else np.ones_like(bits)
                for r, c in np.argwhere(bits[: side.row_count[tile]]):
                    seen[key_head * 2 + queries[c] // n, queries[c] % n, keys[r]] = True
    np.testing.assert_array_equal(seen[0], np.tri(48))
    np.testing.assert_array_equal(seen[1], np.kron(np.eye(6), np.ones((8, 8))) * np.tri(48))
    np.testing.assert_array_equal(seen[2:], seen[:2])


def test_packed_and_unpacked():
    plan = plan_of(order=2)
    back = unpack(pack(plan))
    assert back.group == 2 and len(back.by_key.head_tiles) == 2
    np.testing.assert_array_equal(back.key_index, plan.key_index)
    np.testing.assert_array_equal(pack(back), pack(plan))


def test_a_plan_of_as_many_key_heads_is_what_it_was():
    np.testing.assert_array_equal(pack(plan_of(kv_heads=4)), pack(plan_of(kv_heads=None)))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({Word.KEY_HEADS: 3}, "key heads has to be a divisor of the heads"),
        ({Word.KEY_HEADS: 4}, "key heads has to be a divisor of the heads"),
        ({Word.KEY_HEADS: -2}, "key heads has to be a divisor of the heads"),
        ({Word.KEY_HEADS: 0}, "the words of key heads has to be 0 where there are as many as heads"),
        ({Word.DISTINCT_KEYS: 0}, "distinct key heads has to be positive"),
        ({Word.KEY_INDEX: 0}, "key_index has to be inside"),
        ({"key_index": 1}, "key_index has to be 0 to 0"),
        ({"key_residues": 1}, "key_order has to be that of the heads that read the key head"),
    ],
)
def test_a_damaged_plan_is_refused(change, text):
    if op.kernel_name() == "reference":
        pytest.skip("no C++ compiler")
    blob = pack(plan_of(order=2)).copy()
    at = {"key_index": blob[Word.KEY_INDEX], "key_residues": blob[Word.KEY_RESIDUES]}
    for where, value in change.items():
        blob[at.get(where, where)] = value
    blob[Word.HASH : Word.HASH + 4] = digest(blob)
    q, kv = tf.zeros([1, 48, 32]), tf.zeros([1, 48, 16])
    with pytest.raises(tf.errors.InvalidArgumentError, match=text):
        op.load(op.CPU).ops.blocksparse_attention(q, kv, kv, blob, [], heads=4, kv_heads=2, scale=1.0)


def test_the_attribute_has_to_be_the_plans(small):
    if op.kernel_name() == "reference":
        pytest.skip("no C++ compiler")
    q, kv = tf.zeros([1, 48, 32]), tf.zeros([1, 48, 16])
    with pytest.raises(tf.errors.InvalidArgumentError, match="kv_heads is 1 but the plan has 2"):
        op.load(op.CPU).ops.blocksparse_attention(
            q, kv, kv, pack(plan_of()), [], heads=4, kv_heads=1, scale=1.0
        )


X = np.zeros((1, 64, 32), np.float32)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            dict(kv_heads=3),
            ValueError,
            "kv_heads=3 does not divide heads=4, of which as many have to share each key ",
        ),
        (dict(kv_heads=8), ValueError, "kv_heads=8 does not divide heads=4"),
        (dict(kv_heads=0), ValueError, "kv_heads=0; it has to be at least 1"),
        (dict(kv_heads=-1), ValueError, "kv_heads=-1; it has to be at least 1"),
        (dict(kv_heads=2.0), TypeError, "kv_heads is 2.0; it has to be a positive int"),
        (dict(kv_heads=True), TypeError, "kv_heads is True; it has to be a positive int"),
        (
            dict(kv_heads=2, k=X),
            ValueError,
            "k has width 32 and q 32; with heads=4 and kv_heads=2 k needs 16",
        ),
        (
            dict(kv_heads=2, v=X[..., :15]),
            ValueError,
            "kv_heads=2 does not divide the width of v, 15; nearest width: 16",
        ),
        (dict(kv_heads=2, k=X[:, :, :16], v=X[:, :32]), ValueError, "64, 2 heads \\* d"),
    ],
)
def test_what_does_not_fit_is_refused(call, error, text):
    bst = BlocksparseTransformer(dense(4), 16, 4)
    with pytest.raises(error, match=text):
        bst.attention(**{"q": X, "k": X[..., :16], "v": X[..., :16]} | call)
