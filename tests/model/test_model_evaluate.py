"""What an evaluation scores, and what samples and pictures come out as."""

import wave
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import plot
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sparse_transformer import config, data, pictures
from sparse_transformer.evaluation import mean_bits, windows
from sparse_transformer.generation import read_prompt, write
from sparse_transformer.model import SparseTransformer

TEXT = replace(
    config.load("enwik8_small"), grid=(4, 16), width=32, heads=2, layers=1, local_attn_ctx=16, num_verts=2
)


@given(st.integers(1, 40), st.integers(0, 300), st.data())
def test_every_token_is_scored_once_with_enough_context(n_ctx, more, draw):
    length = n_ctx + more
    min_context = draw.draw(st.integers(0, n_ctx - 1))
    scored = np.zeros(length, int)
    for start, first in zip(*windows(length, n_ctx, min_context), strict=True):
        assert start >= 0 and (start == 0 or first >= min_context)
        scored[start + first : start + n_ctx] += 1
    assert (scored == 1).all()


def test_mean_bits_counts_every_token_alike():
    model = SparseTransformer(TEXT)
    model.logits.kernel.assign(tf.random.stateless_normal(model.logits.kernel.shape, [1, 2]))
    source = data.Stream(np.random.default_rng(0).integers(0, 256, 150, dtype=np.uint8), 64)
    alone = mean_bits(model, source, min_context=60)
    assert np.isclose(alone, mean_bits(model, source, min_context=60, batch=3), rtol=1e-5)
    assert not np.isclose(alone, mean_bits(model, source), rtol=1e-5)


@pytest.mark.parametrize("min_context", [-1, 64])
def test_min_context_out_of_range(min_context):
    with pytest.raises(
        ValueError, match=r"--min-context .* must lie between 0 and the model's context less one, 63"
    ):
        mean_bits(SparseTransformer(TEXT), data.load(TEXT), min_context)


def test_samples_are_written_in_their_kind(tmp_path):
    text = np.frombuffer(b"abcdef", np.uint8).reshape(2, 3)
    (path,) = write(TEXT, text, tmp_path / "s")
    assert path.name == "s.txt" and path.read_bytes() == b"abc\n----\ndef"

    images = replace(TEXT, data="cifar10", grid=(4, 2, 3))
    pixels = np.arange(3 * 24).reshape(3, 24)
    (path,) = write(images, pixels, tmp_path / "s")
    grid = np.asarray(Image.open(path))
    assert path.name == "s.png" and grid.shape == (4 + 2 + 4, 2 + 2 + 2, 3)
    np.testing.assert_array_equal(grid[:4, 4:], pixels[1].reshape(4, 2, 3))
    assert (grid[4:6] == 255).all() and (grid[:, 2:4] == 255).all() and (grid[6:, 4:] == 255).all()

    audio = replace(TEXT, data="audio")
    paths = write(audio, np.full((2, 12_000), 255), tmp_path / "s")
    with wave.open(str(paths[1])) as file:
        assert (file.getframerate(), file.getnframes()) == (12_000, 12_000)
        assert file.readframes(1) == (32767).to_bytes(2, "little")


def test_prompts(tmp_path):
    assert bytes(read_prompt(TEXT, "né", 0)) == "né".encode()
    images = replace(TEXT, data="cifar10", grid=(4, 2, 3))
    Image.fromarray(np.full((8, 4, 3), 9, np.uint8)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_prompt(images, str(tmp_path / "a.png"), 0), np.full(12, 9))
    with pytest.raises(ValueError, match=r"--prompt none\.wav: no such file"):
        read_prompt(replace(TEXT, data="audio"), "none.wav", 1)


@pytest.mark.parametrize("kind", ["modes", "connectivity"])
def test_who_sees_whom_is_drawn(kind, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["plot.py", kind, "--out", str(tmp_path / "picture.png")])
    plot.main()
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_attention_maps_are_the_layers_own_weights():
    settings = replace(config.load("cifar10_small"), layers=2, width=32, layer_modes=("local+strided",))
    model = SparseTransformer(settings)
    tokens = np.random.default_rng(0).integers(0, 256, settings.n_ctx).astype(np.int32)
    weights = pictures.attention_weights(model, tokens, layer=1, position=1000)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)
    seen = np.flatnonzero(weights[0])
    assert seen.max() == 1000 and len(seen) == 96 + 1000 // 96
    block = model.blocks[1]
    x = block.norm1(model.blocks[0](model.embedding(tokens[None])))
    values = tf.reshape(block.attention.value(x)[0], [settings.n_ctx, 2, 16])
    attended = tf.reshape(tf.einsum("hj,jhd->hd", weights, values), [1, 32])
    want = block.attention(x)[0, 1000]
    np.testing.assert_allclose(block.attention.project(attended)[0], want, rtol=1e-4, atol=1e-5)


def test_curves_of_runs(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,bits,gradient_norm,seconds\n0,8.0,1,1\n1,7.0,1,1\n")
    figure = pictures.curves([tmp_path], smooth=2)
    assert figure.axes[0].lines[0].get_ydata().tolist() == [7.5]
    plt.close(figure)
    with pytest.raises(ValueError, match=r"metrics\.csv does not exist"):
        pictures.curves([tmp_path / "none"], smooth=1)
