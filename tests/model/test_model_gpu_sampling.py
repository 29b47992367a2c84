"""Tokens that a GPU draws by itself: the full forward pass's, the softmax's frequencies, a seed's again."""

import numpy as np
import pytest
import tensorflow as tf
from sparse_transformer import generation, gpu_sampling
from sparse_transformer.stepping import Chunk
from test_model_sampling import kept, small

pytestmark = pytest.mark.gpu
CASES = [
    (("fixed",), "float32", 2),
    (("fixed",), "mixed_float16", 1),
    (("fixed",), "mixed_bfloat16", 64),
    (("local+strided", "all"), "float32", 1),
    ((("strided", "local"), "previous"), "mixed_float16", 3),
]


@pytest.fixture(autouse=True)
def exact():
    tf.config.experimental.enable_tensor_float_32_execution(False)


def steps_of(model, rows, **how):
    decoders = model.decoders(rows)
    assert gpu_sampling.serves(model, decoders)
    return decoders, gpu_sampling.make_chunk(Chunk(model, rows, decoders, **how))


def likeliest(model, tokens, slack):
    """Whether each of tokens [rows, n_ctx] is the full forward pass's likeliest, or as good as that to `slack`."""
    logits = model(tokens).numpy()
    chosen = np.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return chosen >= logits.max(-1) - slack


@pytest.mark.parametrize(("layer_modes", "precision", "rows"), CASES, ids=str)
def test_greedy_tokens_are_those_of_the_full_forward_pass(layer_modes, precision, rows):
    model = small(layer_modes, precision=precision)
    prompt = np.random.default_rng(2).integers(0, 256, (rows, 21)).astype(np.int32)
    drawn = np.concatenate([prompt, *generation.stream(model, prompt, 128, 0.0, 0)], axis=1)
    slack = {"float32": 1e-4, "mixed_float16": 0.06, "mixed_bfloat16": 0.5}[precision]
    assert likeliest(model, drawn, slack)[:, 21:].all()
    if precision == "float32":
        decoders = model.decoders(rows)
        by_xla = generation.make_chunk(Chunk(model, rows, decoders, 128))
        start = tf.zeros(rows, tf.int32), tf.constant(0), tf.constant(0), 0.0, tf.constant(0)
        own, by_gpu = steps_of(model, rows, size=128)
        for found, wanted in zip(by_gpu(*start), by_xla(*start), strict=True):  # the tokens, and the last
            np.testing.assert_array_equal(found, wanted)
        for one, other in zip(own, decoders, strict=True):
            for group, mine, theirs in zip(one.groups, one.caches, other.caches, strict=True):
                shape = [rows, group.slots, -1]  # the last slot takes what nobody reads
                mine, theirs = (np.reshape(cache, shape)[:, :-1] for cache in (mine, theirs))
                np.testing.assert_allclose(mine, theirs, atol=1e-4)


def test_prompts_of_different_lengths_share_a_batch():
    model = small()
    lengths = np.array([40, 3, 17])
    prompts = np.random.default_rng(3).integers(0, 256, (3, 40))
    drawn = np.concatenate(list(generation.stream(model, prompts, 128, 0.0, 0, lengths=lengths)), axis=1)
    rows = [np.concatenate([row[:n], new])[:128] for row, n, new in zip(prompts, lengths, drawn, strict=True)]
    found = likeliest(model, np.stack(rows).astype(np.int32), 1e-4)
    assert all(row[length:].all() for row, length in zip(found, lengths, strict=True))


@pytest.mark.parametrize("cut", [{}, {"top_k": 5}, {"top_p": 0.6}], ids=str)
def test_draws_have_the_softmax_frequencies(cut):
    """The first token of 64 rows, seed by seed, at temperature 2."""
    model = small()
    logits = model(np.zeros((1, 128), np.int32)).numpy()[0, 0] / 2
    allowed = sorted(kept(logits, **cut))
    chance = np.exp(logits[allowed] - logits[allowed].max())
    chance /= chance.sum()
    _, chunk = steps_of(model, 64, size=1, **cut)
    start = tf.zeros(64, tf.int32)
    drawn = [
        chunk(start, tf.constant(0), tf.constant(0), 2.0, tf.constant(seed))[1].numpy() for seed in range(60)
    ]
    counts = np.bincount(np.ravel(drawn), minlength=256)
    assert counts[allowed].sum() == counts.sum() == 60 * 64
    error = (counts[allowed] - counts.sum() * chance) / np.sqrt(counts.sum() * chance * (1 - chance) + 1)
    assert abs(error).max() < 5


def test_a_seed_draws_again_and_rows_differ():
    model = small()
    none = np.zeros(0, np.int32)
    one, again, other = (generation.sample(model, none, 2, 128, 1.0, seed) for seed in (0, 0, 1))
    assert (one == again).all() and (one != other).any() and (one[0] != one[1]).any()


def test_tokens_wait_on_the_gpu_for_the_next_chunk():
    model = small()
    _, chunk = steps_of(model, 2, size=4)
    tokens, last = chunk(tf.zeros(2, tf.int32), tf.constant(0), tf.constant(0), 1.0, tf.constant(0))
    assert "GPU" in tokens.device and "GPU" in last.device
    np.testing.assert_array_equal(tokens[:, -1], last)
    assert last.dtype == tf.uint32  # int32 would be in the host's memory


def test_a_cache_that_is_still_being_read_is_not_written():
    model = small()
    decoders, chunk = steps_of(model, 2, size=4)
    before = [step.caches[0].read_value() for step in decoders]
    want = [value.numpy() for value in before]
    chunk(tf.zeros(2, tf.int32), tf.constant(0), tf.constant(0), 1.0, tf.constant(0))
    for value, kept_value, step in zip(before, want, decoders, strict=True):
        np.testing.assert_array_equal(value, kept_value)
        assert (step.caches[0].numpy() != kept_value).any()
