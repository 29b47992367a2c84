"""Packed documents and padding: every way of running against the float64 oracle, and what they must not cost."""

import numpy as np
import oracle
import pytest
import tensorflow as tf
from layouts import SEGMENTS, segments
from tensorflow.python.framework import kernels as registry

from blocksparse.fused import op
from blocksparse.fused.op import kernel_name
from blocksparse.native import devices
from blocksparse.native.compiler import BuildError
from blocksparse.transformer.segments import padding_where
from sparse_attention import attention_impl, blocksparse_attention_impl, get_attn_mask

BATCH, TIME, HEADS = 3, 64, 2
MODES = {
    "all": {"attn_mode": "all"},
    "strided": {"attn_mode": "strided", "local_attn_ctx": 4},
    "fixed": {"attn_mode": "fixed", "local_attn_ctx": 32, "num_verts": 2, "vertsize": 1},
    "merged": {"attn_mode": "local+strided", "local_attn_ctx": 8},
    "shared key heads": {"attn_mode": ("local", "strided"), "local_attn_ctx": 8, "kv_heads": 1},
    "per head, both ways": {"attn_mode": ("local", "strided"), "local_attn_ctx": 8, "causal": False},
}


@pytest.fixture
def generator():
    return np.random.default_rng(0)


def draw(generator):
    """q, k, v and the gradient of the result."""
    return [tf.constant(generator.standard_normal((BATCH, TIME, HEADS * 8)), tf.float32) for _ in range(4)]


def run(attend, q, k, v, dout, **given):
    k, v = (x[..., : given.get("kv_heads", HEADS) * 8] for x in (k, v))
    with tf.GradientTape() as tape:
        tape.watch([q, k, v])
        out = attend(q, k, v, HEADS, blocksize=8, **given)
    return [out, *tape.gradient(out, [q, k, v], dout)]


def expected(inputs, case, meeting):
    q, k, v, dout = (x.numpy() for x in inputs)
    case, kv_heads = dict(case), case.get("kv_heads", HEADS)
    case.pop("kv_heads", None)
    k, v = k[..., : kv_heads * 8], v[..., : kv_heads * 8]
    mask = get_attn_mask(TIME, blocksize=8, **case).numpy()[0].astype(bool)
    seen = np.stack([mask[head % len(mask)] for head in range(HEADS)])
    out, _, *gradients = oracle.attention(q, k, v, seen & meeting, 8**-0.5, dout)
    return [out, *gradients]


def check(found, wanted):
    for name, got, want in zip(("out", "dq", "dk", "dv"), found, wanted, strict=True):
        oracle.assert_close(name, got, want, 2**-21)


@pytest.mark.parametrize("kernels", ["auto", "reference", "dense", "dense, recomputed"])
@pytest.mark.parametrize("kind", SEGMENTS)
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_equals_the_oracle(monkeypatch, generator, mode, kind, kernels):
    if kernels == "reference":
        monkeypatch.setenv("BLOCKSPARSE_KERNELS", kernels)
    attend = attention_impl if "dense" in kernels else blocksparse_attention_impl
    inputs, (numbers, meeting) = draw(generator), segments(generator, kind, BATCH, TIME, TIME)
    given = dict(segment_ids=numbers, recompute=kernels == "dense, recomputed")
    check(run(attend, *inputs, **MODES[mode], **given), expected(inputs, MODES[mode], meeting))


@pytest.mark.parametrize("attend", [attention_impl, blocksparse_attention_impl])
def test_lengths_are_padding_behind(generator, attend):
    """Rows past a length give zeros and have no gradient; others are what the shorter sequence alone gives."""
    inputs, lengths = draw(generator), [0, 24, 64]
    out, *gradients = run(attend, *inputs, attn_mode="all", lengths=lengths)
    for row, length in enumerate(lengths):
        for x in (out, *gradients):
            assert not x[row, length:].numpy().any()
        alone = (
            attend(*(x[row : row + 1, :length] for x in inputs[:3]), HEADS, "all", blocksize=8)
            if length
            else out[:1, :0]
        )
        oracle.assert_close("out", out[row, :length], alone[0], 2**-21)
    numbers = np.zeros((BATCH, TIME), np.int32)
    same = run(attend, *inputs, attn_mode="all", lengths=lengths, segment_ids=numbers)
    for a, b in zip((out, *gradients), same, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("attend", [attention_impl, blocksparse_attention_impl])
def test_integers_of_any_dtype_that_fit(generator, attend):
    """NumPy's integers are int64, and so are the row lengths of a ragged tensor, known or not."""
    x, lengths = tf.constant(generator.standard_normal([2, 16, 16]), tf.float32), np.array([5, 16])
    ids = np.where(np.arange(16) < lengths[:, None], 0, -1)
    expected = attend(x, x, x, 2, "all", blocksize=8, lengths=[5, 16])
    ragged = tf.RaggedTensor.from_row_lengths(tf.zeros([21]), lengths)
    late = tf.function(lambda n: attend(x, x, x, 2, "all", blocksize=8, lengths=n), autograph=False)
    for out in (
        attend(x, x, x, 2, "all", blocksize=8, lengths=lengths),
        attend(x, x, x, 2, "all", blocksize=8, lengths=lengths.astype(np.uint8)),
        attend(x, x, x, 2, "all", blocksize=8, segment_ids=ids),
        attend(x, x, x, 2, "all", blocksize=8, segment_ids=tf.constant(ids.astype(np.int8))),
        attend(x, x, x, 2, "all", blocksize=8, lengths=np.array([5, 2**64 - 1], np.uint64)),
        late(ragged.row_lengths()),
        late(tf.constant([5, 2**32 + 1], tf.int64)),
    ):
        np.testing.assert_allclose(out, expected, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_one_segment_has_the_bits_of_none(generator, mode):
    inputs = draw(generator)
    plain = run(blocksparse_attention_impl, *inputs, **MODES[mode])
    one = run(
        blocksparse_attention_impl, *inputs, **MODES[mode], segment_ids=np.full((BATCH, TIME), 7, np.int32)
    )
    for a, b in zip(plain, one, strict=True):
        np.testing.assert_array_equal(a, b)


def test_extreme_numbers(generator):
    inputs, ends = draw(generator), np.array([0, 1, 2**31 - 2, 2**31 - 1], np.int32)
    numbers = np.sort(ends[generator.integers(4, size=(BATCH, TIME))], axis=1)
    meeting = numbers[:, None, :, None] == numbers[:, None, None, :]
    found = run(blocksparse_attention_impl, *inputs, attn_mode="all", segment_ids=numbers)
    check(found, expected(inputs, MODES["all"], meeting))


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("mode", ["all", "merged"])
def test_a_function_of_unknown_batch_has_the_bits_of_eager(generator, mode, jit):
    try:
        devices.xla_library()
    except BuildError as error:  # of plain TensorFlow XLA makes other sums
        pytest.skip(str(error))
    inputs, (numbers, _) = draw(generator), segments(generator, "padded", BATCH, TIME, TIME)
    spec = [tf.TensorSpec([None, TIME, HEADS * 8])] * 4 + [tf.TensorSpec([None, TIME], tf.int32)] * 2

    def step(q, k, v, dout, *numbers):
        return run(blocksparse_attention_impl, q, k, v, dout, **MODES[mode], segment_ids=numbers)

    compiled = tf.function(step, input_signature=spec, jit_compile=jit)(*inputs, *numbers)
    for a, b in zip(compiled, step(*inputs, *numbers), strict=True):
        assert a.numpy().tobytes() == b.numpy().tobytes()


def test_another_batch_is_refused_when_it_is_known_first(generator, monkeypatch):
    """In a graph where both batches are unknown: by the kernels, and by the reference, which could spread one row."""
    inputs, numbers = draw(generator), np.zeros((1, TIME), np.int32)
    spec = [tf.TensorSpec([None, TIME, HEADS * 8])] * 3 + [tf.TensorSpec([None, TIME], tf.int32)]
    for kernels in ("auto", "reference"):
        monkeypatch.setenv("BLOCKSPARSE_KERNELS", kernels)
        attend = tf.function(
            lambda q, k, v, ids: blocksparse_attention_impl(
                q, k, v, HEADS, "all", blocksize=8, segment_ids=ids
            ),
            input_signature=spec,
        )
        with pytest.raises(tf.errors.InvalidArgumentError):
            attend(*inputs[:3], numbers)


@pytest.mark.parametrize("batch, time", [(BATCH, TIME), (None, TIME), (None, None)])
def test_on_a_gpu_numbers_reach_the_kernel_without_the_host(batch, time):
    """TensorFlow runs many int32 operations on the host, beside a GPU too: two copies and two waits a forward pass."""
    if kernel_name() == "reference":
        pytest.skip("no C++ compiler")
    spec = [tf.TensorSpec([batch, TIME, HEADS * 8])] * 3 + [tf.TensorSpec([batch, time], tf.int32)]
    spec.append(tf.TensorSpec([batch, time], tf.bool))

    def step(q, k, v, numbers, mask):
        numbers = padding_where(mask, numbers)
        return blocksparse_attention_impl(q, k, v, HEADS, "all", blocksize=8, segment_ids=numbers)

    graph = tf.function(step, input_signature=spec).get_concrete_function().graph
    (attention,) = (op for op in graph.get_operations() if op.type == "BlocksparseAttention")
    waiting, seen = [x.op for x in attention.inputs[-2:]], set()
    while waiting:
        op = waiting.pop()
        if op.type not in ("Placeholder", "Const") and op.name not in seen:
            seen.add(op.name)
            assert not host_memory(op), (op.name, op.type)
            waiting += [x.op for x in op.inputs]
    assert seen


def host_memory(op):
    """What of an operation's int32 tensors its GPU kernel keeps in host memory."""
    found = []
    for kernel in registry.get_registered_kernels_for_op(op.type).kernel:
        own = {c.name: c.allowed_values.list.type for c in kernel.constraint}
        fits = all(op.get_attr(name).as_datatype_enum in types for name, types in own.items())
        if kernel.device_type in ("GPU", "DEFAULT") and fits:
            found.append(list(kernel.host_memory_arg))
    return min(found, key=len, default=[])


def test_tiles_of_other_documents_are_not_visited(generator):
    """A weight of 0 times NaN would be NaN: the values of one document are not even multiplied in the others' rows."""
    if kernel_name() == "reference":
        pytest.skip("no C++ compiler")
    q, k, v = generator.standard_normal((3, 1, 512, 16)).astype(np.float32)
    v[:, :128] = np.nan
    numbers = np.repeat(np.arange(4, dtype=np.int32), 128)[None]
    out = blocksparse_attention_impl(q, k, v, HEADS, "all", blocksize=8, segment_ids=numbers).numpy()
    rows = np.isnan(out).any((0, 2))
    assert rows[:128].all() and not rows[256:].any()


def test_a_saved_model(generator, tmp_path):
    inputs, (numbers, _) = draw(generator)[:3], segments(generator, "sorted", BATCH, TIME, TIME)
    module = tf.Module()
    spec = [tf.TensorSpec([None, TIME, HEADS * 8])] * 3 + [tf.TensorSpec([None, TIME], tf.int32)]
    module.attend = tf.function(
        lambda q, k, v, ids: blocksparse_attention_impl(q, k, v, HEADS, "all", blocksize=8, segment_ids=ids),
        spec,
    )
    tf.saved_model.save(module, tmp_path)
    loaded = tf.saved_model.load(tmp_path)
    np.testing.assert_array_equal(loaded.attend(*inputs, numbers[0]), module.attend(*inputs, numbers[0]))


def test_a_graph_of_before_segments_still_loads(generator):
    """What was saved without the attribute has the operation without segment numbers."""
    if kernel_name() == "reference":
        pytest.skip("no C++ compiler")
    inputs = draw(generator)[:3]
    attend = tf.function(lambda *x: blocksparse_attention_impl(*x, HEADS, "all", blocksize=8))
    traced = attend.get_concrete_function(*inputs)
    graph = traced.graph.as_graph_def()
    (node,) = (node for node in graph.node if node.op == "BlocksparseAttention")
    del node.attr["segment_sides"]
    names = [node.name for node in graph.node if node.op == "Placeholder"]
    imported = tf.compat.v1.wrap_function(lambda: tf.graph_util.import_graph_def(graph, name=""), [])
    loaded = imported.prune([f"{name}:0" for name in names], f"{node.name}:0")
    np.testing.assert_array_equal(loaded(*inputs, *traced.captured_inputs), attend(*inputs))


def test_segments_take_none_of_the_tiles_of_dense_rows(monkeypatch):
    """Of a dense row segments may leave little, and kernels that cut lists are slower on large tiles."""
    shares = []
    monkeypatch.setattr(op, "_tiles", lambda *given: shares.append(given[-1]) or ((32, 32), (32, 32)))
    x = tf.random.stateless_normal([1, 128, 32], [1, 2])
    whole = blocksparse_attention_impl(x, x, x, 2, "all")
    one = blocksparse_attention_impl(x, x, x, 2, "all", segment_ids=tf.zeros([1, 128], tf.int32))
    np.testing.assert_array_equal(whole, one)
    assert shares == ([pytest.approx(0.5, abs=0.01), 0.0] if kernel_name() != "reference" else [])
