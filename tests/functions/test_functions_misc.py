"""Dropout, casts, filters, statistics, reductions over ranks, errors, and the list of names."""

import inspect
import sys

import numpy as np
import pytest
import tensorflow as tf

import blocksparse as bs
from blocksparse import nccl
from sparse_attention import split_heads, strided_transpose

tf1 = tf.compat.v1
ONES = tf.ones([64, 48])
INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_dropout(dtype):
    x = tf.cast(ONES, dtype)
    y, mask = bs.dropout(x, keep_prob=0.8)
    kept = tf.cast(y, tf.float32).numpy() > 0
    assert 0.75 < kept.mean() < 0.85 and y.dtype == dtype
    np.testing.assert_allclose(
        tf.cast(y, tf.float32).numpy()[kept], 1.25, rtol=2e-2 if dtype != "float32" else 1e-6
    )
    np.testing.assert_array_equal(bs.dropout(x, keep_prob=0.8, mask=mask)[0], y)
    assert np.mean(kept == (bs.dropout(x, keep_prob=0.8)[0].numpy() > 0)) < 0.9
    assert (bs.dropout(x, keep_prob=1.0)[0].numpy() == 1).all()


@pytest.mark.parametrize("shape", [[64, 1], [1, 48], [1, 1], None])
def test_dropout_mask_shape(shape):
    y = bs.dropout(ONES, keep_prob=0.5, mask_shape=shape)[0].numpy()
    assert set(np.unique(y)) <= {0, 2}
    np.testing.assert_array_equal(
        y, np.broadcast_to(y[: (shape or [64])[0], : (shape or [0, 48])[1]], y.shape)
    )
    with pytest.raises(
        ValueError, match=r"mask_shape is \[2, 48\], but x is \[64, 48\]: each size must be x's or 1"
    ):
        bs.dropout(ONES, keep_prob=0.5, mask_shape=[2, 48])


@pytest.mark.parametrize("known", [None, [None, 48]])
def test_dropout_mask_shape_of_sizes_that_are_known_when_the_graph_runs(known):
    drop = tf.function(
        lambda x: bs.dropout(x, 0.5, mask_shape=[64, 1])[0],
        input_signature=[tf.TensorSpec(known, tf.float32)],
    )
    y = drop(ONES).numpy()
    np.testing.assert_array_equal(y, np.broadcast_to(y[:, :1], y.shape))
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match="64"):
        drop(tf.ones([1, 48]))


@pytest.mark.parametrize(
    "call", [lambda x: bs.layer_norm(x, [1.0], [0.0]), lambda x: bs.bias_relu(x, [1.0], axis=1)]
)
def test_an_axis_of_a_tensor_without_a_known_rank(call):
    with pytest.raises(ValueError, match=r"axis is 1, but x has no known rank.*tf.ensure_shape"):
        tf.function(call, input_signature=[tf.TensorSpec(None, tf.float32)])(ONES)


@pytest.mark.parametrize("keep_prob", [0, 1.5, np.float32(7), np.float64(-0.5), np.array(0.0)])
def test_dropout_keeps_some(keep_prob):
    with pytest.raises(ValueError, match=r"keep_prob is .*; it has to lie above 0 and be at most 1"):
        bs.dropout(ONES, keep_prob)


def test_dropout_with_packed_bits():
    kept = np.random.RandomState(0).randint(0, 2, 70).astype(bool)
    bits = np.zeros(96, bool)
    bits[:70] = kept
    words = np.packbits(bits.reshape(-1, 8)[:, ::-1]).view(np.int32)
    np.testing.assert_array_equal(bs.dropout(tf.ones([7, 10]), 0.5, mask=words)[0], kept.reshape(7, 10) * 2)


def masks(seed, steps=2):
    with tf.Graph().as_default():
        if seed is not None:
            np.random.seed(seed)
            bs.set_entropy()
            assert bs.get_entropy().name == "Entropy:0" and not tf1.trainable_variables()
        kept = [bs.dropout(tf.ones([64, 48]), 0.5)[0] for _ in range(2)]
        with tf1.Session() as session:
            session.run(tf1.global_variables_initializer())
            return np.array([session.run(kept) for _ in range(steps)]).reshape(2 * steps, -1)


def test_entropy_decides_the_masks():
    first = masks(1)
    np.testing.assert_array_equal(first, masks(1))
    several = np.concatenate([first, masks(2), masks(None)])
    same = np.mean(several[:, None] == several, axis=-1)
    assert same[~np.eye(len(several), dtype=bool)].max() < 0.6  # no two draws alike
    with tf.Graph().as_default(), pytest.raises(ValueError, match=r"call blocksparse.set_entropy\(\)"):
        bs.get_entropy()
    with pytest.raises(ValueError, match="init has 8 bytes, but a seed needs 16"):
        bs.set_entropy(np.zeros(1))
    for made in (tf.constant, tf.compat.v1.Variable):
        with (
            tf.Graph().as_default(),
            pytest.raises(TypeError, match=r"init is a .*; pass an array of two int64"),
        ):
            bs.set_entropy(made([4.0]))


def test_float_cast():
    x = tf.constant([1.0, 2.0])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        same, half, sixteen = (bs.float_cast(x, tf.float32), bs.float_cast(x, "float16"), None)
        sixteen = bs.float_cast(x, tf.float16, dx_dtype=tf.float16)
    assert same is x and half.dtype == sixteen.dtype == tf.float16
    assert tape.gradient(half, x).dtype == tf.float32
    assert tape.gradient(sixteen, x).dtype == tf.float16
    with pytest.raises(
        ValueError, match=r"dtype is int32, but is float32, float16 or bfloat16 here: use tf\.cast"
    ):
        bs.float_cast(x, tf.int32)


def test_filter_tensor():
    x = tf.constant([INF, -INF, NAN, 3.0], tf.float16)
    np.testing.assert_array_equal(bs.filter_tensor(x, zero_infs=True, zero_nans=True), [0, 0, 0, 3])
    np.testing.assert_array_equal(bs.filter_tensor(x, 2.0, saturate=5.0, zero_nans=True), [5, -5, 0, 5])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = bs.filter_tensor(x, 2.0, saturate=5.0)
    np.testing.assert_array_equal(tape.gradient(y, x, x), [5, -5, NAN, 5])


def test_masks_get_no_gradient_and_empty_rows_are_zero():
    x, mask = tf.constant([[1.0, 2.0], [3.0, 4.0]]), tf.constant([[1.0, 1.0], [0.0, 0.0]])
    with tf.GradientTape() as tape:
        tape.watch([x, mask])
        y = bs.masked_softmax(x, mask)
    dx, dmask = tape.gradient(y, [x, mask], tf.constant([[1.0, 0.0], [1.0, 0.0]]))
    assert dmask is None
    np.testing.assert_array_equal(y[1], [0, 0])
    np.testing.assert_array_equal(dx[1], [0, 0])


@pytest.mark.parametrize("index", [2**32 + 1, -(2**32) + 1, 6])
def test_an_index_is_never_cut_to_one_that_exists(index):
    index = np.array([index], np.int64)
    with pytest.raises(tf.errors.InvalidArgumentError, match="not in"):
        bs.embedding_lookup(tf.ones((6, 4)), index)
    try:
        loss = bs.softmax_cross_entropy(tf.ones((1, 5)), index)
    except tf.errors.InvalidArgumentError as error:
        assert "valid range" in str(error)
    else:
        assert np.isnan(loss)


def test_a_nan_that_is_hidden_has_no_part_in_the_gradient_of_scale():
    scale, x, mask = tf.Variable(1.5), tf.constant([[1.0, np.nan, np.inf, 2.0]]), [[1.0, 0, 0, 1]]
    bst = bs.BlocksparseTransformer(
        np.ones((1, 1)), 8, heads=1, mask_callback=lambda s, *_: np.tri(*s, dtype=bool)
    )
    scores = tf.where(np.tri(8, dtype=bool), tf.reshape(tf.range(64.0), (8, 8)) / 9, np.nan)[None, None, None]
    for y in (lambda: bs.masked_softmax(x, mask, scale), lambda: bst.masked_softmax(scores, scale)):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(y() ** 2)
        assert np.isfinite(tape.gradient(loss, scale)) and np.isfinite(loss)


def test_top_k_among_equals():
    x = tf.constant([[1.0, 2.0, 2.0, 2.0]])
    np.testing.assert_array_equal(bs.top_k(x, 2)[1], [[1, 2]])
    np.testing.assert_array_equal(bs.masked_top_k_softmax(x, 2), [[0, 0.5, 0.5, 0]])
    np.testing.assert_array_equal(bs.rectified_top_k(x, 2, rebase=False), [[0, 2, 2, 0]])


def test_log_stats(tmp_path):
    log = tmp_path / "stats.txt"
    x = tf.constant([0.0, 1e-9, 4.0, 65504.0], tf.float32)
    for step in range(1, 11):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = bs.log_stats(x, step, freq=4, bfreq=0, logfile=str(log), name="x")
        np.testing.assert_array_equal(tape.gradient(y, x), 1)
        np.testing.assert_array_equal(y, x)
    head, *lines = (line.split("\t") for line in log.read_text().splitlines())
    assert head[:3] == ["sat_pct", "ftz_pct", "max"] and head[-2:] == ["count", "name"]
    assert [line[-2] for line in lines] == ["1", "2", "4", "8"]
    assert lines[0] == ["25.000000", "25.000000", "15", "13", "14", "17", "15", "15", "1", "x"]
    with pytest.raises(ValueError, match="freq is 3, but it is a power of 2"):
        bs.log_stats(x, 1, freq=3)


def test_group_allreduce_keeps_order_shapes_and_dtypes():
    parameters = [
        tf.Variable(tf.ones(shape), name=name) for shape, name in (([2], "b"), ([3, 2], "a/w"), ([], "a/b"))
    ]
    values = [tf.fill(p.shape, float(i)) for i, p in enumerate(parameters)]
    reduced = bs.group_allreduce(list(values), parameters, search_strings=["a", ["rest"]], num_comms=1)
    for value, result in zip(values, reduced):
        np.testing.assert_array_equal(value, result)
    half = bs.group_allreduce(list(values), parameters, cast_all=tf.float16)
    assert {grad.dtype for grad in half} == {tf.float16}
    mapped = bs.group_allreduce(
        list(values), parameters, search_strings=["a", "b"], cast_map={"a": tf.float16}
    )
    assert [grad.dtype.name for grad in mapped] == ["float32", "float16", "float16"]


class TwoRanks:
    """MPI's communicator, as if another rank had the same numbers."""

    def Get_size(self):
        return 2

    def Get_group(self):
        return self

    def Incl(self, ranks):
        assert ranks == [0, 1]

    def Create_group(self, group):
        return self

    def Allreduce(self, mine, total):
        np.copyto(total, 2 * mine)


def test_several_ranks(monkeypatch):
    monkeypatch.setattr(nccl, "_world", TwoRanks)
    x = tf.constant([1.0, 2.0], tf.float16)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = bs.allreduce(x)
    np.testing.assert_array_equal(y, [2, 4])
    np.testing.assert_array_equal(tape.gradient(y, x), [2, 2])
    with tf.Graph().as_default():
        p = tf1.get_variable("p", initializer=[1.0, 2.0])
        first, second = bs.allreduce(p * 2), bs.allreduce(p * 3)
        bs.serialize_allreduce_ops([first + second])
        reductions = tf1.get_collection(nccl._COLLECTION)
        assert reductions[1].control_inputs == [reductions[0]]
        with tf1.Session() as session:
            session.run(tf1.global_variables_initializer())
            np.testing.assert_array_equal(session.run([first, second]), [[4, 8], [6, 12]])
            session.run(bs.sync_variables_op(0))
            np.testing.assert_array_equal(session.run(p), [2, 4])
            session.run([bs.sync_variables_op(1), bs.nccl.sync_globals_zero_init_op()][0])
            np.testing.assert_array_equal(session.run(p), [0, 0])


def test_several_ranks_without_mpi4py(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with pytest.raises(
        RuntimeError, match=r"OMPI_COMM_WORLD_SIZE is 2, but mpi4py is missing: .*tf\.distribute"
    ):
        bs.allreduce(ONES)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: bs.add_n([]), "xs is empty: add_n needs at least one tensor"),
        (lambda: bs.bias_relu(ONES, ONES[0], relu=True, fast_gelu=True), "relu and fast_gelu are both set"),
        (
            lambda: bs.layer_norm(ONES, ONES[0], ONES[0, 1:], axis=-1),
            r"b is \(47,\), but x is .*: it must have 48",
        ),
        (lambda: bs.layer_norm(ONES, ONES[0], ONES[0], axis=1, segments=5), "segments is 5, but axis 1 of x"),
        (lambda: bs.masked_softmax(ONES, ONES[:2]), r"mask is \(2, 48\), but x is \(64, 48\): as many axes"),
        (lambda: bs.masked_softmax(ONES, ONES[0]), r"mask is \(48,\), but x is \(64, 48\)"),
        (
            lambda: bs.top_k(ONES, 49),
            r"k is 49, but rows of x \(\(64, 48\)\) have 48 entries: k lies in 1 .. 48",
        ),
        (lambda: bs.rectified_top_k(ONES, 0), "k is 0"),
        (
            lambda: bs.dropout(ONES, 0.5, mask=np.zeros(96, np.int64)),
            r"mask is int64 \(96,\); the seed that dropout returned is \[2\], packed bits int32",
        ),
        (
            lambda: bs.dropout(ONES, 0.5, mask=np.zeros(95, np.int32)),
            r"mask is int32 \(95,\); 3072 entries want \[96\] words or more",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


ARGUMENTS = {
    "add": "x y name",
    "add_n": "xs name",
    "allreduce": "x sync_size num_comms logfile rank prereduce name mpi_ranks comm_id debug_str",
    "bias_relu": "x b axis relu fast_gelu atomics bench use_tf",
    "clear_bst_constants": "",
    "clip_by_global_norm": "grads clip_norm grad_scale saturate zero_infs zero_nans",
    "dropout": "x keep_prob mask mask_shape",
    "embedding_lookup": "emb idx sort_grad bench use_tf",
    "fast_gelu": "x name",
    "filter_tensor": "x scale saturate zero_infs zero_nans",
    "float_cast": "x dtype dx_dtype name",
    "gelu": "x alpha name",
    "get_entropy": "",
    "global_norm": "grads grad_scale saturate zero_infs zero_nans",
    "gradients": "ys xs grad_ys stop_grads group_aggregations custom_matmul_grad",
    "group_allreduce": "grads parms search_strings cast_map cast_all allreduce_op allreduce_kwargs",
    "layer_norm": "x g b axis segments epsilon relu atomics bench use_tf",
    "log_stats": "x step sat_val ftz_val freq bfreq logfile name",
    "masked_softmax": "x mask scale bench",
    "masked_top_k_softmax": "x k mask scale",
    "multiply": "x y name",
    "recomputable": "function",
    "rectified_top_k": "x k rebase",
    "relu": "x name",
    "scale_tensor": "x scale",
    "serialize_allreduce_ops": "graph_targets serialize_inputs print_dag",
    "set_entropy": "init",
    "softmax": "x scale bench",
    "softmax_cross_entropy": "logits labels",
    "swish": "x alpha name",
    "sync_variables_op": "mpi_rank num_comms prereduce",
    "top_k": "x k",
    "transpose_0213": "x",
    "transpose_2d": "x",
}
CLASSES = {"AdafactorOptimizer", "AdamOptimizer", "BlocksparseTransformer", "Ema"}


def test_names_and_arguments_are_openais():
    own = {"Pattern", "from_mask"}
    assert set(bs.__all__) == {*ARGUMENTS, *CLASSES, "nccl", *own}
    for name, arguments in ARGUMENTS.items():
        assert list(inspect.signature(getattr(bs, name)).parameters) == arguments.split(), name


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: bs.layer_norm(ONES, [1.0] * 64, [0.0] * 64, axis=1.0), TypeError, r"axis is 1\.0; it has to be"),
        (lambda: bs.layer_norm(ONES, [1.0] * 48, [0.0] * 48, segments=2.0), TypeError, r"segments is 2\.0; it has"),
        (lambda: bs.log_stats(ONES, 1, freq=2.0), ValueError, r"freq is 2\.0, but it is a power of 2"),
        (lambda: split_heads(ONES[None], 5), ValueError, "n=5 does not divide the width of x, 48"),
        (lambda: split_heads(ONES[None], 0), ValueError, "n=0; it has to be at least 1"),
        (lambda: strided_transpose(ONES[None], 64, 0, 8), ValueError, "local_attn_ctx=0; it has to be at least 1"),
        (lambda: strided_transpose(ONES[None], 128, 2, 8), ValueError, "x has 64 positions, but n_ctx=128"),
    ],
)  # fmt: skip
def test_numbers_that_mean_nothing_are_refused_in_words(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_one_tensor_or_an_iterator_is_a_list_of_them():
    for given in (ONES, iter([ONES]), [ONES]):
        np.testing.assert_array_equal(bs.add_n(given), ONES)
