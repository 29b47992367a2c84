"""The trained models that are committed: small, opened by name, and as good as they say."""

import json
import sys
from dataclasses import replace

import complete
import numpy as np
import pytest
from PIL import Image
from sparse_transformer import checkpoint, data, origin, pretrained, runs
from sparse_transformer.evaluation import evaluate, load_model

NAMES = ("image", "text")


def test_there_are_two():
    assert tuple(sorted(path.parent.name for path in runs.PRETRAINED.glob("*/weights.npz"))) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_its_files_say_how_it_was_made(name):
    folder = runs.open(name)
    assert (folder / "weights.npz").stat().st_size < 8e6
    config, card = runs.read_config(folder), json.loads((folder / "card.json").read_text())
    fetch, train = card["commands"]
    assert fetch.startswith("python examples/fetch.py ")
    assert train.startswith(f"python examples/train.py {config.name} ")
    assert train.endswith(f"--steps {card['steps']}") and config.steps == card["steps"]


@pytest.mark.parametrize("name", NAMES)
def test_data_that_it_learnt_and_is_not_here_is_fetched_by_a_command(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=r"is not here: python examples/fetch\.py \w+ --out data/\w+; or give --data"
    ):
        origin.path_of(runs.open(name), None)


@pytest.mark.parametrize("name", NAMES)
def test_it_scores_what_its_card_says(name):
    folder = runs.open(name)
    model = load_model(name)
    tokens = pretrained.held_out(folder, model.config)
    if name == "text":
        source = data.Stream(tokens.reshape(-1), model.config.n_ctx)
    else:
        source = data.Images([tokens.reshape(-1, 1, 28, 28)], np.arange(len(tokens)))
    card = json.loads((folder / "card.json").read_text())
    assert abs(evaluate(model, source, batch=4).bits - card["held_out_bits"]) < 2e-3
    assert card["held_out_bits"] < {"text": 2.0, "image": 3.5}[name]  # it has learnt


def test_a_run_is_packed_and_opened(unbroken, tmp_path):
    folder = tmp_path / "packed"
    pretrained.write(unbroken, folder, {"bits": 7.5})
    assert runs.open(str(folder)) == folder and runs.read_config(folder) == runs.read_config(unbroken)
    assert json.loads((folder / "card.json").read_text()) == {"bits": 7.5, "steps": 8}
    before, after = load_model(unbroken), load_model(folder)
    for one, two in zip(before.trainable_variables, after.trainable_variables, strict=True):
        np.testing.assert_allclose(one, two, rtol=2**-11, atol=2**-24)  # float16's
    with pytest.raises(ValueError, match="packed holds no checkpoint yet"):
        load_model(folder, averaged=False)
    (folder / "weights.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"weights\.npz is damaged .*; get it again with git checkout"):
        load_model(folder)


def test_weights_beyond_float16_are_not_packed(unbroken, tmp_path):
    arrays = checkpoint.read(unbroken)
    arrays["adam_w/decayed_average"] = arrays["adam_w/decayed_average"] + np.float32(1e6)
    (tmp_path / "config.json").write_bytes((unbroken / "config.json").read_bytes())
    np.savez(tmp_path / "checkpoint.npz", **arrays)
    with np.errstate(over="ignore"), pytest.raises(ValueError, match="has weights above float16's 65,504"):
        pretrained.write(tmp_path, tmp_path / "packed", {})
    assert not (tmp_path / "packed").exists()


def test_a_name_that_is_neither_lists_the_names():
    with pytest.raises(ValueError, match=r"txt holds no run .*, or name a trained model: image, text"):
        runs.open("txt")


def test_a_folder_goes_before_a_name(unbroken, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert runs.open("text") == runs.PRETRAINED / "text"
    assert runs.output(runs.open("text")) == runs.Path(
        "runs/text"
    )  # nothing is written among the committed files
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "config.json").write_bytes((unbroken / "config.json").read_bytes())
    assert runs.open("text") == runs.Path("text") == runs.output(runs.Path("text"))


@pytest.mark.parametrize("channels", [1, 3])
def test_held_out_images_come_back(channels, tmp_path):
    config = runs.read_config(runs.open("image"))
    config = replace(config, grid=(4, 4, channels))
    tokens = np.random.default_rng(0).integers(0, 256, (16, 16 * channels), dtype=np.uint8)
    pretrained.write_held_out(tmp_path, config, tokens)
    np.testing.assert_array_equal(pretrained.held_out(tmp_path, config), tokens)
    with pytest.raises(ValueError, match="no held-out windows that can be read"):
        pretrained.held_out(tmp_path / "none", config)


# complete.py


def completed(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["complete.py", *map(str, arguments)])
    complete.main()


def test_images_are_completed_beside_the_originals(monkeypatch, tmp_path, capsys):
    out = tmp_path / "folder" / "c.png"
    completed(monkeypatch, "image", "--count", 3, "--given", 780, "--out", out)
    assert capsys.readouterr().out.startswith(f"wrote {out}: above what was given")
    pixels = np.asarray(Image.open(out))[::2, ::2]
    assert pixels.shape == (3 * 28 + 2 * 4, 3 * 28 + 2 * 4)
    original = pretrained.held_out(runs.open("image"), runs.read_config(runs.open("image")))[0].reshape(
        28, 28
    )
    np.testing.assert_array_equal(pixels[64:, :28], original)
    np.testing.assert_array_equal(
        pixels[32:59, :28], original[:27]
    )  # four pixels of the last row are the model's
    np.testing.assert_array_equal(pixels[27, :28], np.append(original[27, :24], [160] * 4))


def test_texts_go_on_from_what_was_given(monkeypatch, capsys):
    completed(monkeypatch, "text", "--count", 1, "--given", 30, "--length", 40)
    first, rest = capsys.readouterr().out.split("\u2588")
    want = (runs.open("text") / "held_out.txt").read_bytes()[:30]
    assert first == want.decode(errors="replace") and rest.endswith("-" * 78 + "\n")


@pytest.mark.parametrize(
    "arguments, problem",
    [
        (["image", "--length", 785], "--given 392 has to be less than --length 785, and that at most 784"),
        (["text", "--given", 600], "--given 600 has to be less than --length 600"),
        (["none"], "complete.py: none holds no run"),
    ],
)
def test_a_wrong_argument_is_named(arguments, problem, monkeypatch):
    with pytest.raises(SystemExit, match=problem):
        completed(monkeypatch, *arguments)
