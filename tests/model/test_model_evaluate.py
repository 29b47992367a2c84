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
from sparse_transformer import config, contexts, data, pictures
from sparse_transformer.evaluation import evaluate, mean_bits, usual_limit, windows
from sparse_transformer.generation import write
from sparse_transformer.model import SparseTransformer, bits
from sparse_transformer.prompts import length_of, read_prompt

from blocksparse.plan import pictures as patterns

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


def test_a_score_has_the_standard_error_of_its_windows():
    model = SparseTransformer(TEXT)
    model.logits.kernel.assign(tf.random.stateless_normal(model.logits.kernel.shape, [1, 2]))
    source = data.Stream(np.random.default_rng(0).integers(0, 256, 64 * 20, dtype=np.uint8), 64)
    score = evaluate(model, source, batch=8)
    alone = [evaluate(model, data.Stream(source.tokens[i : i + 64], 64)).bits for i in range(0, 64 * 20, 64)]
    np.testing.assert_allclose(score.bits, np.mean(alone), rtol=1e-6)
    np.testing.assert_allclose(score.error, np.std(alone, ddof=1) / 20**0.5, rtol=1e-3)
    assert str(score) == f"{score.bits:.4f} +- {score.error:.4f} bits per dim over all 20 windows"
    part = evaluate(model, source, limit=5)
    assert str(part).endswith("over 5 of 20 windows") and part.error > score.error
    one = evaluate(model, source, limit=1)
    assert str(one) == f"{one.bits:.4f} bits per dim over 1 of 20 windows"  # which has no standard error
    only = evaluate(model, data.Stream(source.tokens[:64], 64))
    assert str(only) == f"{only.bits:.4f} bits per dim over the only window"


@pytest.fixture(scope="module")
def uneven():
    """A model whose bits differ from place to place, and a stream of seven of its contexts and some more."""
    model = SparseTransformer(TEXT)
    for number, weight in enumerate(model.trainable_variables):
        weight.assign(tf.random.stateless_normal(weight.shape, [number, 2], stddev=0.3))
    return model, data.Stream(np.random.default_rng(0).integers(0, 256, 64 * 7 + 5, dtype=np.uint8), 64)


def test_every_minimum_context_scores_the_same_tokens(uneven):
    model, source = uneven
    rows = contexts.score(64, model, source, [0, 32, 48], shift=16, batch=3)
    of_token = {}  # bits of a token by the context that it has
    for start in range(0, len(source.tokens) - 63, 16):
        window = source.tokens[start : start + 64].astype(np.int32)
        for place, bits_of_token in enumerate(bits(model(window[None]), window[None]).numpy()[0]):
            of_token.setdefault(start + place, {})[place] = bits_of_token
    everywhere = [places for places in of_token.values() if len(places) == 4]
    assert len(everywhere) == len(source.tokens) // 16 * 16 - 2 * 48
    for row, least in zip(rows, (0, 32, 48), strict=True):
        want = [np.mean([spent for place, spent in each.items() if place >= least]) for each in everywhere]
        np.testing.assert_allclose(row.bits, np.mean(want), rtol=1e-5)
    assert rows[0].less is None and rows[0].windows == 25
    np.testing.assert_allclose(
        [each.less for each in rows[1:]], -np.diff([each.bits for each in rows]), rtol=1e-6
    )


def test_rows_of_the_same_tokens_have_the_errors_of_their_differences(uneven):
    model, source = uneven
    row = contexts.score(64, model, source, [0, 48], shift=16, batch=8)[1]
    assert 0 < row.less_error < row.error  # what makes a stretch hard does so at every context
    only = contexts.score(64, model, data.Stream(source.tokens[:112], 64), [0, 48], shift=16)
    assert [each.error for each in only] == [0, 0] and only[1].less_error == 0  # a single stretch has none


def test_pieces_are_found_again_in_their_windows():
    """Window w has at its place p the piece w + p of the stream."""
    windows, places = 7, 3
    spent = np.add.outer(np.arange(windows), np.arange(places)) * 10.0 + np.arange(places)
    np.testing.assert_array_equal(
        contexts.of_pieces(spent), np.arange(2, 7)[:, None] * 10.0 + np.arange(places)
    )


@pytest.mark.parametrize(
    "least, shift, length, said",
    [
        ([0, 8], 16, 400, r"--shift 16 must divide the model's context, 64, and every --min-context: 0, 8$"),
        ([0], 24, 400, r"--shift 24 must divide"),
        ([64], 16, 400, r"--min-context 64 must lie between 0 and the model's context less one, 63"),
        ([0], 16, 111, r"--shift 16 wants 112 tokens at least, and there are 111"),
    ],
)
def test_rows_that_could_not_score_the_same_tokens_are_refused(least, shift, length, said):
    with pytest.raises(ValueError, match=said):
        contexts.check(64, data.Stream(np.zeros(length, np.uint8), 64), least, shift)
    with pytest.raises(ValueError, match=r"--shift 16: an image is a context of its own; leave it out"):
        contexts.check(64, data.Images([np.zeros((1, 3, 8, 8), np.uint8)], np.arange(1)), [0], 16)


def test_some_hundred_windows_are_usual():
    assert [usual_limit(n) for n in (64, 3072, 12_288, 2**20)] == [256, 256, 85, 16]


@pytest.mark.parametrize("min_context", [-1, 64])
def test_min_context_out_of_range(min_context):
    with pytest.raises(
        ValueError, match=r"--min-context .* must lie between 0 and the model's context less one, 63"
    ):
        mean_bits(SparseTransformer(TEXT), data.load(TEXT), min_context)


@pytest.mark.parametrize("tokens", [63, 401])
def test_the_beginning_of_a_split_has_a_context_and_is_there(tokens):
    source = data.Stream(np.zeros(400, np.uint8), 64)
    assert len(data.beginning(source, 64).tokens) == 64
    with pytest.raises(
        ValueError, match=rf"--tokens {tokens} has to lie between .* 64, and the split's 400 tokens"
    ):
        data.beginning(source, tokens)
    with pytest.raises(ValueError, match=r"--tokens 64: images are scored whole; take --limit"):
        data.beginning(data.Images([np.zeros((1, 3, 8, 8), np.uint8)], np.arange(1)), 64)


def test_grey_images_are_written(tmp_path):
    grey = np.arange(3 * 784, dtype=np.int32).reshape(3, 784) % 256
    (path,) = write(config.load("fashion"), grey, tmp_path / "s")
    with Image.open(path) as image:
        assert image.mode == "L" and image.size == (58, 58)


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
    grey = replace(TEXT, data="fashion", grid=(2, 2, 1))
    np.testing.assert_array_equal(read_prompt(grey, str(tmp_path / "a.png"), 0), [9, 9])
    (tmp_path / "b.png").write_text("no picture")
    with pytest.raises(
        ValueError, match=r"b\.png: not a PNG or JPEG file that can be read \(it is neither\)$"
    ):
        read_prompt(grey, str(tmp_path / "b.png"), 0)
    assert length_of(TEXT, np.zeros(3), None) == 64
    with pytest.raises(ValueError, match=r"--length 3 must exceed the prompt's 3 tokens"):
        length_of(TEXT, np.zeros(3), 3)


@pytest.mark.parametrize("kind", ["modes", "connectivity"])
def test_who_sees_whom_is_drawn(kind, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["plot.py", kind, "--out", str(tmp_path / "picture.png")])
    plot.main()
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_figure_3_says_what_its_colours_are():
    figure = patterns.figure_3()
    (legend,) = figure.legends
    colours = {tuple(np.round(patch.get_facecolor()[:3], 3)) for patch in legend.get_patches()}
    drawn = {
        tuple(np.round(colour, 3))
        for axes in figure.axes
        for colour in axes.collections[0].get_array().reshape(-1, 3)
    }
    assert colours == drawn and "queries (rows) by 16 keys (columns)" in figure.get_suptitle()


def test_an_image_that_shows_something_is_drawn():
    flat = np.full((20, 3, 32, 32), 90, np.uint8)
    flat[19, :, :16] = 200  # the last of those that are spread over the split
    first, second = pictures.vivid(data.Images([flat], np.arange(20)), 2)
    assert set(first) == {90, 200} and set(second) == {90}


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


def test_pictures_of_attention_show_structure_and_the_query():
    grid, position = (8, 8, 3), 130
    weights = np.zeros((2, 192))
    weights[0, 1:131] = 1e-4  # nearly all on one key: the others have to be seen as well
    weights[0, 61] = 0.9
    weights[1, 1:131] = 1 / 130
    first, second = pictures.overlays(np.zeros(192, int), weights, position, grid)
    assert first[2, 4].min() == 1 and (first[0, 0] > 0.1).all()
    assert second[0, 0].min() > 0.9 and (second[6:] == 0).all()
    figure, axes = plt.subplots(2, 1)
    pictures.panels(axes, [first, second], position, grid)
    (frame,) = axes[0].patches
    y, x = position // 3 // 8, position // 3 % 8
    assert frame.get_x() + frame.get_width() / 2 == x and frame.get_y() + frame.get_height() / 2 == y
    plt.close(figure)


def test_curves_of_runs(tmp_path):
    (tmp_path / "metrics.csv").write_text(
        "step,bits,gradient_norm,seconds,learning_rate,valid_bits\n0,8.0,1,1,0,\n1,7.0,1,1,0,7.7\n"
    )
    figure = pictures.curves([tmp_path], smooth=2)
    assert figure.axes[0].lines[0].get_ydata().tolist() == [7.5]
    np.testing.assert_array_equal(figure.axes[0].lines[1].get_ydata(), [np.nan, 7.7])
    plt.close(figure)
    rows = [f"{step},{8 - step / 20},1,1,0," for step in range(20)]
    for name in ("dense_1", "dense_2", "fixed_1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.csv").write_text("\n".join(["step,bits", *rows]) + "\n")
    figure = pictures.curves([tmp_path / name for name in ("dense_1", "dense_2", "fixed_1")], smooth=20)
    lines = figure.axes[0].lines[::2]
    assert [len(line.get_ydata()) for line in lines] == [17, 17, 17]  # means of a fifth of so short a run
    low, high = figure.axes[0].get_ylim()
    assert low < lines[0].get_ydata()[-1] and lines[0].get_ydata()[2] < high
    assert lines[0].get_color() == lines[1].get_color() != lines[2].get_color()
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["dense", "fixed"]
    plt.close(figure)
    with pytest.raises(ValueError, match=r"metrics\.csv does not exist"):
        pictures.curves([tmp_path / "none"], smooth=1)
