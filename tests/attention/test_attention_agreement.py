"""Dense and block-sparse attention against a float64 oracle, and the properties that make them so."""

import numpy as np
import oracle
import pytest
import tensorflow as tf

from blocksparse.native import devices
from blocksparse.native.compiler import BuildError
from sparse_attention import attention_impl, blocksparse_attention_impl, get_attn_mask

BATCH, TIME, HEADS, HEAD_DIM, VALUE_DIM = 2, 64, 4, 8, 16
EPSILON = {tf.float32: 2**-23, tf.float16: 2**-10, tf.bfloat16: 2**-7}

CASES = {
    "all": {"attn_mode": "all"},
    "local": {"attn_mode": "local", "local_attn_ctx": 13},
    "local 1": {"attn_mode": "local", "local_attn_ctx": 1},
    "local beyond the context": {"attn_mode": "local", "local_attn_ctx": 1000},
    "strided": {"attn_mode": "strided", "local_attn_ctx": 4},
    "strided 1": {"attn_mode": "strided", "local_attn_ctx": 1},
    "chunk": {"attn_mode": "chunk", "local_attn_ctx": 16},
    "short last chunk": {"attn_mode": "chunk", "local_attn_ctx": 40},
    "summary": {"attn_mode": "summary", "local_attn_ctx": 32, "num_verts": 2, "vertsize": 2},
    "fixed": {"attn_mode": "fixed", "local_attn_ctx": 24, "num_verts": 2, "vertsize": 1},
    "merged": {"attn_mode": "local+strided", "local_attn_ctx": 4},
    "merged with empty first part": {
        "attn_mode": "summary+strided",
        "local_attn_ctx": 8,
        "num_verts": 1,
        "vertsize": 1,
    },
    "merged with empty second part": {"attn_mode": "all+strided", "local_attn_ctx": 4},
    "per head": {"attn_mode": ("local", "strided"), "local_attn_ctx": 8},
    "per head, some merged": {
        "attn_mode": ("local+strided", "summary", "all"),
        "local_attn_ctx": 8,
        "num_verts": 1,
        "vertsize": 1,
    },
    "previous": {"attn_mode": "previous", "local_attn_ctx": 24},
    "factored": {"attn_mode": ("chunk", "previous", "chunk+previous"), "local_attn_ctx": 16},
    "prefix": {"attn_mode": "prefix", "local_attn_ctx": 21},
    "prefix beyond the context": {"attn_mode": "prefix", "local_attn_ctx": 100},
    "prefix beside others": {"attn_mode": ("local", "prefix", "strided+prefix"), "local_attn_ctx": 8},
}
CASES |= {f"{name}, both ways": {**case, "causal": False} for name, case in CASES.items()}


@pytest.fixture
def random():
    return np.random.default_rng(0)


def draw(random, dtype=tf.float32):
    """q, k, v and the gradient of the result, numbers of the dtype."""
    widths = (HEADS * HEAD_DIM, HEADS * HEAD_DIM, HEADS * VALUE_DIM, HEADS * VALUE_DIM)
    return [tf.cast(random.standard_normal((BATCH, TIME, width)), dtype) for width in widths]


def run(attend, q, k, v, gradient, case):
    with tf.GradientTape() as tape:
        tape.watch([q, k, v])
        out = attend(q, k, v, HEADS, blocksize=8, **case)
    return [out, *tape.gradient(out, [q, k, v], gradient)]


def visible(case):
    """bool [heads, time, time], by hand."""
    i, j = np.indices((TIME, TIME))
    length, modes = case.get("local_attn_ctx"), case["attn_mode"]
    modes = (modes,) if isinstance(modes, str) else modes

    def see(name, head):
        if name == "fixed":
            return see("chunk", head) | see("summary", head)
        if name == "summary":
            width = case["vertsize"] * 8
            last = length - head % case["num_verts"] * width
            return (j % length >= last - width) & (j % length < last)
        return {
            "all": lambda: i == i,
            "local": lambda: abs(i - j) < length,
            "strided": lambda: (i - j) % length == 0,
            "chunk": lambda: i // length == j // length,
            "previous": lambda: abs(i // length - j // length) == 1,
            "prefix": lambda: i == i,
        }[name]()

    of_heads = []
    for head in range(HEADS):
        names = modes[head % len(modes)].split("+")
        seen = np.logical_or.reduce([see(name, head) for name in names])
        seen &= (j <= i) | (not case.get("causal", True))
        of_heads.append(seen | (j < length) if "prefix" in names else seen)
    return np.stack(of_heads)


def expected(q, k, v, gradient, case):
    """Output and gradients in float64."""
    q, k, v, gradient = (tf.cast(x, tf.float64).numpy() for x in (q, k, v, gradient))
    out, _, *gradients = oracle.attention(q, k, v, visible(case), HEAD_DIM**-0.5, gradient)
    return out, *gradients


def check(found, expected, dtype):
    for name, got, want in zip(("out", "dq", "dk", "dv"), found, expected):
        assert got.dtype == dtype
        got = tf.cast(got, tf.float64).numpy()
        assert np.isfinite(got).all(), name
        error = np.abs(got - want).max() / max(1, np.abs(want).max())
        assert error < (64 if dtype == tf.float32 else 4) * EPSILON[dtype], (name, error)


@pytest.mark.parametrize("attend", [attention_impl, blocksparse_attention_impl])
@pytest.mark.parametrize("name", CASES)
def test_every_mode_equals_the_oracle(random, attend, name):
    inputs = draw(random)
    check(run(attend, *inputs, CASES[name]), expected(*inputs, CASES[name]), tf.float32)


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
@pytest.mark.parametrize("attend", [attention_impl, blocksparse_attention_impl])
@pytest.mark.parametrize("name", ["all", "fixed", "merged", "per head, some merged"])
def test_half_precision_loses_only_the_rounding_of_inputs_and_results(random, attend, name, dtype):
    inputs = draw(random, dtype)
    check(run(attend, *inputs, CASES[name]), expected(*inputs, CASES[name]), dtype)


@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("attend", [attention_impl, blocksparse_attention_impl])
@pytest.mark.parametrize(
    "name", ["all", "local", "strided", "fixed", "merged", "per head, some merged, both ways"]
)
def test_heads_that_share_keys(random, attend, name, kv_heads):
    q, k, v, gradient = draw(random)
    k, v = k[..., : kv_heads * HEAD_DIM], v[..., : kv_heads * VALUE_DIM]
    case = CASES[name] | dict(kv_heads=kv_heads)
    check(run(attend, q, k, v, gradient, case), expected(q, k, v, gradient, case), tf.float32)


def test_large_scores_overflow_nowhere(random):
    q, k, v, _ = draw(random, tf.float16)
    q, k = q * 300, k * 300  # products of 90,000, beyond float16
    for attend in (attention_impl, blocksparse_attention_impl):
        out = attend(q, k, v, HEADS, "all", blocksize=8)
        assert np.isfinite(out.numpy()).all()


@pytest.mark.parametrize("name", ["fixed", "merged", "per head, some merged"])
def test_a_tf_function_with_unknown_batch_equals_eager(random, name):
    inputs = draw(random)
    specs = [tf.TensorSpec([None, *x.shape[1:]], x.dtype) for x in inputs]
    for attend in (attention_impl, blocksparse_attention_impl):
        step = tf.function(lambda *x, attend=attend: run(attend, *x, CASES[name]), input_signature=specs)
        assert step.get_concrete_function().outputs[0].shape.as_list() == [None, TIME, HEADS * VALUE_DIM]
        check(step(*inputs), expected(*inputs, CASES[name]), tf.float32)


@pytest.mark.parametrize("name", ["all", "local", "strided", "fixed"])
def test_compiled_by_xla_it_has_the_same_bits(random, name):
    try:
        devices.xla_library()
    except BuildError as error:  # of plain TensorFlow XLA makes other sums
        pytest.skip(str(error))
    inputs, case = draw(random), CASES[name] | {"recompute": True}

    def step(*inputs):
        return run(blocksparse_attention_impl, *inputs, case)

    plain, compiled = (tf.function(step, jit_compile=jit)(*inputs) for jit in (False, True))
    for a, b in zip(plain, compiled, strict=True):
        assert a.numpy().tobytes() == b.numpy().tobytes()


def test_dense_attention_takes_any_time_even_unknown(random):
    x = tf.constant(random.standard_normal((1, 37, 6)), tf.float32)
    spec = [tf.TensorSpec([None, None, 6], tf.float32)] * 3
    for mode in ("all", "local", "strided", "chunk", "summary", "fixed", "local+strided"):
        sizes = {"local_attn_ctx": 5, "num_verts": 2, "vertsize": 2, "blocksize": 1}

        def attend(q, k, v, mode=mode, sizes=sizes):
            return attention_impl(q, k, v, 3, mode, **sizes)

        known = attend(x, x, x)
        assert known.shape == x.shape
        np.testing.assert_allclose(tf.function(attend, input_signature=spec)(x, x, x), known, atol=1e-6)


@pytest.mark.parametrize("attend", [attention_impl, blocksparse_attention_impl])
def test_a_row_that_sees_nothing_is_zero_and_has_no_gradient(random, attend):
    q, k, v, gradient = draw(random)
    case = {"attn_mode": "summary", "local_attn_ctx": 32, "num_verts": 1, "vertsize": 1}
    out, dq, *_ = run(attend, q, k, v, gradient, case)
    assert not out[:, :24].numpy().any() and not dq[:, :24].numpy().any()  # the first summary column is 24
    assert out[:, 24:].numpy().any(-1).all()
    lonely = np.zeros(gradient.shape, np.float32)
    lonely[:, :24] = gradient[:, :24]  # a gradient that reaches empty rows only goes nowhere
    for x in run(attend, q, k, v, tf.constant(lonely), case)[1:]:
        assert not x.numpy().any()


@pytest.mark.parametrize("attend", [attention_impl, blocksparse_attention_impl])
@pytest.mark.parametrize("name", CASES)
def test_what_a_query_does_not_see_never_matters(random, attend, name):
    """Another key and value at j change exactly the rows that see j; the future changes nothing before it."""
    q, k, v, _ = draw(random)
    before = attend(q, k, v, HEADS, blocksize=8, **CASES[name]).numpy()
    seen = visible(CASES[name])
    for j in random.choice(TIME, 3, replace=False):
        other = np.zeros((1, TIME, 1), np.float32)
        other[:, j] = 1
        after = attend(q, k + other, v - 2 * other, HEADS, blocksize=8, **CASES[name]).numpy()
        changed = (before != after).reshape(BATCH, TIME, HEADS, VALUE_DIM).any((0, 3)).T  # [heads, time]
        np.testing.assert_array_equal(changed, seen[:, :, j])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["local", "fixed", "merged", "per head, some merged"])
def test_a_key_that_is_no_number_reaches_the_queries_that_see_it(random, name, bad):
    q, k, v, gradient = draw(random)
    j, seen = 17, visible(CASES[name])
    spoilt = k.numpy()
    spoilt[:, j] = bad
    out, dq, *_ = run(blocksparse_attention_impl, q, tf.constant(spoilt), v, gradient, CASES[name])
    for x in (out, dq):
        finite = np.isfinite(x.numpy().reshape(BATCH, TIME, HEADS, -1)).all((0, 3)).T  # [heads, time]
        assert finite[~seen[:, :, j]].all()
        if np.isnan(bad):
            assert not finite[seen[:, :, j]].any()


def test_each_batch_row_equals_itself_alone(random):
    q, k, v, _ = draw(random)
    for name in ("fixed", "merged"):
        together = blocksparse_attention_impl(q, k, v, HEADS, blocksize=8, **CASES[name])
        for row in range(BATCH):
            alone = blocksparse_attention_impl(
                *(x[row : row + 1] for x in (q, k, v)), HEADS, blocksize=8, **CASES[name]
            )
            np.testing.assert_array_equal(alone[0], together[row])


def test_the_mask_is_one_a_kind_of_head():
    assert get_attn_mask(6, "local", 2).numpy().astype(int)[0, 0].tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 1, 1],
    ]
    mask = get_attn_mask(tf.constant(8), ("strided", "summary"), 4, blocksize=1, num_verts=2, vertsize=1)
    assert mask.dtype == tf.float32
    assert mask.numpy().astype(int)[:, :, 7].tolist() == [
        [
            [0, 0, 0, 1, 0, 0, 0, 1],  # even heads: strided
            [0, 0, 1, 0, 0, 0, 1, 0],  # odd heads: the second column from a chunk's end
        ]
    ]


@pytest.mark.parametrize("name", ["all", "merged", "per head, some merged"])
def test_a_second_differentiation_says_that_there_is_none(random, name):
    q, k, v, _ = draw(random)
    with tf.GradientTape() as outer:
        outer.watch(q)
        with tf.GradientTape() as inner:
            inner.watch(q)
            out = tf.reduce_sum(blocksparse_attention_impl(q, k, v, HEADS, blocksize=8, **CASES[name]) ** 2)
        dq = inner.gradient(out, q)
    with pytest.raises(LookupError, match=r"\w+ \w+ \w+"):
        outer.gradient(dq, q)
