"""Every length of context: known, known only when a graph runs, and above what a graph was traced for."""

import itertools

import numpy as np
import oracle
import pytest
import tensorflow as tf

from blocksparse.native import devices
from blocksparse.native.compiler import BuildError
from blocksparse.plan.lengths import ladder, whole
from blocksparse.plan.modes import head_modes
from sparse_attention import attention_impl, blocksparse_attention_impl, get_attn_mask

HEADS, DIM = 3, 8
NAMES = ("out", "dq", "dk", "dv")


def draw(time, seed=0, batch=2):
    """q, k, v and the gradient of the result."""
    generator = np.random.default_rng([seed, time])
    return [tf.constant(generator.standard_normal((batch, time, HEADS * DIM)), tf.float32) for _ in range(4)]


def run(q, k, v, gradient, attend=blocksparse_attention_impl, **pattern):
    with tf.GradientTape() as tape:
        tape.watch([q, k, v])
        out = attend(q, k, v, HEADS, **pattern)
    return [out, *tape.gradient(out, [q, k, v], gradient)]


def truth(inputs, pattern):
    """In float64, by the mask of `get_attn_mask`, which test_attention_patterns.py holds against the definitions."""
    sizes = {name: value for name, value in pattern.items() if name != "max_time"}
    masks = get_attn_mask(inputs[0].shape[1], **sizes)[0].numpy() > 0
    q, k, v, gradient = (x.numpy() for x in inputs)
    visible = masks[np.arange(HEADS) % len(masks)]
    out, _, *gradients = oracle.attention(q, k, v, visible, DIM**-0.5, gradient)
    return [out, *gradients]


def check(found, want):
    for name, got, own in zip(NAMES, found, want, strict=True):
        error = np.abs(got - own).max() / max(
            1, np.abs(own).max()
        )  # of one key alone, dq is nothing but rounding
        assert got.shape == own.shape and error < 64 * 2**-23, (name, error)


PATTERNS = {
    "all": dict(attn_mode="all"),
    "local": dict(attn_mode="local", local_attn_ctx=13),
    "strided": dict(attn_mode="strided", local_attn_ctx=5),
    "fixed": dict(attn_mode="fixed", local_attn_ctx=24, num_verts=3, vertsize=1),
    "merged": dict(attn_mode="local+strided", local_attn_ctx=7),
    "per head": dict(attn_mode=("local", "strided", "previous+strided"), local_attn_ctx=9),
    "prefix": dict(attn_mode="prefix", local_attn_ctx=50),
    "both ways": dict(attn_mode=("local+strided", "all"), local_attn_ctx=6, causal=False),
}
TIMES = (1, 8, 37, 64, 150)
UNKNOWN = [tf.TensorSpec([None, None, HEADS * DIM])] * 4
IDS = tf.TensorSpec([None, None], tf.int32)


def of_unknown_time(pattern, **options):
    pattern = dict(blocksize=8, max_time=150) | pattern
    return tf.function(lambda *x: run(*x, **pattern), input_signature=UNKNOWN, **options)


@pytest.mark.parametrize(
    "name, kernels",
    [*((name, "auto") for name in PATTERNS), ("merged", "reference"), ("both ways", "reference")],
)
def test_one_graph_of_unknown_time_runs_with_every_length(name, kernels, monkeypatch):
    monkeypatch.setenv("BLOCKSPARSE_KERNELS", kernels)
    step = of_unknown_time(PATTERNS[name])
    for time in TIMES if kernels == "auto" else (37, 150):
        inputs = draw(time)
        check(step(*inputs), truth(inputs, dict(blocksize=8) | PATTERNS[name]))
    assert step.experimental_get_tracing_count() == 1


@pytest.mark.parametrize(
    "name, kernels", [("merged", "auto"), ("both ways", "auto"), ("merged", "reference")]
)
def test_unknown_times_with_segments_and_shared_key_heads(name, kernels, monkeypatch):
    monkeypatch.setenv("BLOCKSPARSE_KERNELS", kernels)
    pattern = dict(blocksize=8) | PATTERNS[name]
    step = tf.function(
        lambda q, k, v, g, ids: run(q, k, v, g, kv_heads=1, segment_ids=ids, **pattern, max_time=150),
        input_signature=[*UNKNOWN[:1], *[tf.TensorSpec([None, None, DIM])] * 2, UNKNOWN[0], IDS],
    )
    for time in (5, 101):
        q, k, v, gradient = draw(time)
        ids = np.sort(np.random.default_rng(time).integers(-1, 2, (2, time)).astype(np.int32))
        masks = get_attn_mask(time, **pattern)[0].numpy() > 0
        visible = (
            masks[np.arange(HEADS) % len(masks)]
            & (ids[:, None, :, None] == ids[:, None, None])
            & (ids >= 0)[:, None, None]
        )
        found = step(q, k[..., :DIM], v[..., :DIM], gradient, ids)
        shared = [tf.tile(x[..., :DIM], [1, 1, HEADS]).numpy() for x in (k, v)]
        out, _, dq, dk, dv = oracle.attention(q.numpy(), *shared, visible, DIM**-0.5, gradient.numpy())
        check(found, [out, dq, *(x.reshape(2, time, HEADS, DIM).sum(2) for x in (dk, dv))])


@pytest.mark.parametrize("name", ["fixed", "merged", "both ways"])
def test_under_xla_a_graph_of_unknown_time_has_the_same_bits(name):
    try:
        devices.xla_library()
    except BuildError as error:
        pytest.skip(str(error))
    plain, compiled = (of_unknown_time(PATTERNS[name], jit_compile=jit) for jit in (False, True))
    for time in (37, 64):
        for a, b in zip(plain(*draw(time)), compiled(*draw(time)), strict=True):
            assert a.numpy().tobytes() == b.numpy().tobytes()


def test_a_time_above_the_largest_ends_the_graph_in_words():
    step = of_unknown_time(PATTERNS["local"] | dict(max_time=40))
    wanted = "above max_time=40, for which this graph was traced: trace it with a larger max_time"
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"time is.*41.*{wanted}|{wanted}"):
        step(*draw(41))
    assert step(*draw(40))[0].shape == (2, 40, HEADS * DIM)
    inputs = draw(100)
    known = run(*inputs, **PATTERNS["local"], blocksize=8, max_time=40)  # a known time may be any
    check(known, truth(inputs, dict(blocksize=8) | PATTERNS["local"]))


def test_plans_of_unknown_times_are_few_and_at_most_about_twice_as_long_as_needed():
    for mode, length in (("all", None), ("local+strided", 128), ("strided", 3000)):
        modes = head_modes(mode, 4, length)
        found = ladder(modes, 8192, 32)
        assert len(found) <= 9 and [each.rows for each in found] == sorted({each.rows for each in found})
        assert found[-1].rows >= 8192
        for shorter, longer in itertools.pairwise(found):
            assert longer.rows <= 2.5 * shorter.rows and longer.sorted == shorter.sorted
            assert shorter.time == shorter.rows


def test_what_openai_asks_for_is_planned_as_it_was():
    """Whole blocks and whole classes get no other rows or blocks, so results keep their bits."""
    for mode, length in (("all", None), ("fixed", 128), ("strided", 32), ("local+strided", 32)):
        modes = head_modes(mode, 4, length, 32, 4, 1)
        plan = whole(modes, 1024, 32)
        assert (plan.rows, plan.block_size, plan.sorted) == (1024, 32, "strided" in mode)


@pytest.mark.parametrize("causal", [True, False])
def test_an_exported_graph_takes_every_length(tmp_path, causal):
    module = tf.Module()
    pattern = PATTERNS["per head"] | dict(blocksize=8, max_time=100, causal=causal)
    module.step = tf.function(
        lambda q, k, v: blocksparse_attention_impl(q, k, v, HEADS, **pattern), input_signature=UNKNOWN[:3]
    )
    tf.saved_model.save(module, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    for time in (3, 77):
        q, k, v, _ = draw(time)
        want = attention_impl(q, k, v, HEADS, **pattern)
        np.testing.assert_allclose(loaded.step(q, k, v), want, atol=2e-6)


@pytest.mark.parametrize("jit", [None, False, True], ids=["eager", "function", "xla"])
@pytest.mark.parametrize("name", ["all", "merged", "per head"])
@pytest.mark.parametrize("known", [True, False])
def test_no_positions_at_all(name, jit, known):
    inputs = [tf.zeros([2, 0, HEADS * DIM])] * 4
    pattern = dict(blocksize=8, max_time=40) | PATTERNS[name]
    if known or jit:  # XLA knows every time when it compiles
        step = lambda *x: run(*x, **pattern)  # noqa: E731
        step = step if jit is None else tf.function(step, jit_compile=jit)
    else:
        step = tf.function(lambda *x: run(*x, **pattern), input_signature=UNKNOWN)
    assert [x.shape.as_list() for x in step(*inputs)] == [[2, 0, HEADS * DIM]] * 4
