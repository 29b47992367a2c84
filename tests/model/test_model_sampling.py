"""What is drawn: after prompts filled in at once, in chunks; temperature, top-k and top-p; what is shown of it."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from sparse_transformer import config, generation
from sparse_transformer.generation import likeliest, make_generator, sample, stream
from sparse_transformer.model import SparseTransformer
from test_model_decode import LAYERS
from training_runs import EXAMPLES


def small(layer_modes=("fixed",), **changes):
    shape = dict(grid=(8, 16), width=32, heads=2, layers=2, local_attn_ctx=16, num_verts=2) | changes
    model = SparseTransformer(replace(config.load("enwik8_small"), layer_modes=layer_modes, **shape))
    rng = np.random.default_rng(1)
    for weight in model.trainable_variables:  # far from the start, where every logit is 0
        weight.assign(weight + rng.normal(size=weight.shape, scale=0.2))
    return model


@pytest.mark.parametrize("layer_modes", LAYERS, ids=str)
def test_a_stream_draws_what_the_one_loop_draws(layer_modes, monkeypatch):
    monkeypatch.setattr(generation, "CHUNK", 50)
    model = small(layer_modes)
    prompt = np.random.default_rng(2).integers(0, 256, 21).astype(np.int32)
    whole = make_generator(model, 2, 128)(np.stack([prompt, prompt]), tf.constant(1.0), tf.constant(7))
    np.testing.assert_array_equal(sample(model, prompt, 2, 128, 1.0, 7), whole)


@pytest.mark.parametrize("layer_modes", LAYERS, ids=str)
def test_prompts_of_different_lengths_share_a_batch(layer_modes):
    model = small(layer_modes)
    lengths = np.array([40, 3, 17])
    prompts = np.random.default_rng(3).integers(0, 256, (3, 40))
    drawn = np.concatenate(list(stream(model, prompts, 128, 0.0, 0, lengths=lengths)), axis=1)
    rows = [np.concatenate([row[:n], new])[:128] for row, n, new in zip(prompts, lengths, drawn, strict=True)]
    modes = model(np.stack(rows)).numpy().argmax(-1)
    for row, mode, length in zip(rows, modes, lengths, strict=True):
        np.testing.assert_array_equal(row[length:], mode[length:])


def test_xla_takes_over_where_a_card_has_no_kernels(monkeypatch):
    def make_chunk(*_, **__):
        def chunk(*_):
            raise tf.errors.InternalError(None, None, "compiling step-f16 failed")

        return chunk

    model = small()
    want = sample(model, np.arange(10), 2, 128, 1.0, 7)
    monkeypatch.setattr(generation.gpu_sampling, "serves", lambda *_: True)
    monkeypatch.setattr(generation.gpu_sampling, "make_chunk", make_chunk)
    with pytest.warns(RuntimeWarning, match="goes on in XLA's loop, slower: compiling step-f16 failed"):
        found = sample(model, np.arange(10), 2, 128, 1.0, 7)
    np.testing.assert_array_equal(found, want)


def test_a_gpu_draws_the_next_chunk_while_the_host_shows_one(monkeypatch):
    asked, own = [], generation.make_chunk

    def make_chunk(of):
        chunk = own(of)
        return lambda *arguments: asked.append(arguments) or chunk(*arguments)

    monkeypatch.setattr(generation, "CHUNK", 16)
    monkeypatch.setattr(generation, "make_chunk", make_chunk)
    monkeypatch.setattr(generation.gpu_sampling, "make_chunk", make_chunk)
    model, none = small(), np.zeros((2, 0), np.int32)
    alone = []
    for ahead in (False, True):
        monkeypatch.setattr(generation.gpu_sampling, "serves", lambda *_, gpu=ahead: gpu)
        asked.clear()
        shown = [(len(asked), tokens) for tokens in stream(model, none, 56, 1.0, 7)]
        assert [count for count, _ in shown] == ([2, 3, 4, 4] if ahead else [1, 2, 3, 4])
        alone.append(np.concatenate([tokens for _, tokens in shown], axis=1))
    assert alone[0].shape == (2, 56)
    np.testing.assert_array_equal(*alone)


def test_a_seed_draws_again_and_rows_differ():
    model = small()
    none = np.zeros(0, np.int32)
    one, again, other = (sample(model, none, 2, 64, 1.0, seed) for seed in (0, 0, 1))
    assert (one == again).all() and (one != other).any() and (one[0] != one[1]).any()


def test_half_precision_samples():
    model = small(precision="mixed_bfloat16")
    assert {cache.dtype for step in model.decoders(1) for cache in step.caches} == {tf.bfloat16}
    tokens = sample(model, np.arange(30), 1, 64, 0.0, 0)
    assert (tokens[0, :30] == np.arange(30)).all()


def test_a_quantized_model_is_refused_in_words():
    model = small()
    model.blocks[0].expand.quantize("int8")
    with pytest.raises(ValueError, match=r"expand is quantized \(int8\); .* sample from the model before"):
        sample(model, np.arange(3), 1, 64, 0.0, 0)


def kept(logits, top_k=None, top_p=None):
    """The tokens that may be drawn, by the definition: a loop over one row."""
    order = np.argsort(-logits)
    if top_k is not None:
        order = order[:top_k]
    if top_p is not None and top_p < 1:
        p = np.exp(logits[order] - logits[order].max())
        p /= p.sum()
        needed = next((n for n in range(1, len(p)) if p[:n].sum() >= top_p), len(p))
        order = order[:needed]
    return set(order)


@pytest.mark.parametrize("top_k", [None, 1, 5, 256, 1000])
@pytest.mark.parametrize("top_p", [None, 0.0, 0.3, 0.9, 1.0])
def test_likeliest_is_its_definition(top_k, top_p):
    logits = np.random.default_rng(4).normal(size=(6, 256), scale=3).astype(np.float32)
    for jit in (False, True):
        found = tf.function(lambda: likeliest(tf.constant(logits), top_k, top_p), jit_compile=jit)().numpy()
        for row, cut in zip(logits, found, strict=True):
            assert set(np.flatnonzero(np.isfinite(cut))) == kept(row, top_k, top_p)
            np.testing.assert_array_equal(cut[np.isfinite(cut)], row[np.isfinite(cut)])


def test_top_k_of_one_is_the_mode_whatever_the_temperature():
    model = small()
    prompt = np.arange(10)
    mode = sample(model, prompt, 1, 64, 0.0, 0)
    np.testing.assert_array_equal(sample(model, prompt, 1, 64, 5.0, 3, top_k=1), mode)
    np.testing.assert_array_equal(sample(model, prompt, 1, 64, 5.0, 3, top_p=0.0), mode)


def test_a_text_is_written_as_it_comes_and_several_are_counted(unbroken, tmp_path):
    words = [
        sys.executable,
        EXAMPLES / "sample.py",
        unbroken,
        "--prompt",
        "import ",
        "--out",
        tmp_path / "drawn",
    ]
    result = subprocess.run([*words, "--top-p", "0.9"], capture_output=True, timeout=120)
    assert result.returncode == 0, result.stderr
    drawn = (tmp_path / "drawn.txt").read_bytes()
    assert drawn.startswith(b"import ") and len(drawn) == 64
    shown = drawn.decode(errors="replace") + f"\nwrote {tmp_path / 'drawn.txt'}\n"
    assert result.stdout.decode() == shown
    result = subprocess.run([*words, "--count", "2", "--top-k", "9"], capture_output=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert b"position" in result.stderr and result.stdout.count(b"import ") == 2
