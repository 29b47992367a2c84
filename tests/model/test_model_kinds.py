"""A file of a wrong kind is refused with words that lead to a model of it."""

import os
import subprocess
import sys

import pytest
from sparse_transformer import config, data
from sparse_transformer.formats import DataError, kinds
from training_runs import EXAMPLES

SETTINGS = {
    "images": [config.load("cifar10_small"), config.load("imagenet64_small")],
    "audio": [config.load("music_small")],
    "text": [config.load("enwik8_small")],
}
OWN = {
    "images": set(),
    "audio": {"recording"},
    "text": {"text"},
}  # kinds that are read; one picture is too few
READ_ELSEWHERE = {
    "images": {"document", "PDF"},
    "audio": {"document", "PDF"},
    "text": set(),
}  # refused, no more


def cases():
    for model, settings in SETTINGS.items():
        for kind, endings in kinds.ENDINGS.items():
            if kind not in OWN[model] | READ_ELSEWHERE[model]:
                yield from ((each, model, kind, endings) for each in settings)


@pytest.mark.parametrize(
    "settings, model, kind, endings", [*cases()], ids=lambda value: getattr(value, "name", "")
)
def test_every_wrong_kind_has_a_repair(settings, model, kind, endings, tmp_path):
    """Alone and in a folder, whatever the case of its name's end."""
    for number, ending in enumerate(endings):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = folder / f"my file{ending.upper()}"
        path.write_bytes(b"whatever\0" * 100)
        given = [path] if (model, kind) == ("images", "picture") else [path, folder]
        for each in given:
            with pytest.raises(DataError) as raised:
                data.load(settings, str(each))
            said = str(raised.value)
            assert f"{each}: 'my file{ending.upper()}' is " in said and ". Wanted: " in said
            others = ("ffmpeg", "magick", "pandoc", "pdftotext", "unpack", "train ", "give the folder")
            assert any(word in said for word in others)


def test_a_folder_of_films_is_that_in_spite_of_its_notes(tmp_path):
    (tmp_path / "a notes.txt").write_text("of the films")
    (tmp_path / "b.mp4").write_bytes(b"\0\0\0\x18ftypmp42")
    with pytest.raises(
        DataError, match=r"b\.mp4 is a film; take a picture a second out of it: mkdir pictures"
    ):
        data.load(SETTINGS["images"][0], str(tmp_path))


@pytest.mark.parametrize("name", ["cifar10_small", "imagenet64_small"])
def test_what_nobody_knows_is_told_of_pictures(name, tmp_path):
    (tmp_path / "film").write_bytes(b"\0\0\0\x18ftypmp42")
    with pytest.raises(DataError, match=r"Wanted: .*, or a folder of PNG or JPEG files"):
        data.load(config.load(name), str(tmp_path / "film"))


def test_the_command_says_it(tmp_path):
    """Before TensorFlow is imported, and nothing is written."""
    film = tmp_path / "film.mp4"
    film.write_bytes(b"\0\0\0\x18ftypmp42")
    words = [
        sys.executable,
        EXAMPLES / "train.py",
        "cifar10_small",
        "--data",
        film,
        "--out",
        tmp_path / "run",
    ]
    result = subprocess.run(words, env=os.environ, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr == (
        f"train.py: {film}: film.mp4 is a film; take a picture a second out of it: mkdir pictures && "
        "ffmpeg -i film.mp4 -vf fps=1 pictures/%06d.png, and give the folder pictures. Wanted: "
        "a folder of PNG or JPEG files, one such .npz batch of ImageNet 64x64, or a data set of the paper\n"
    )


def test_the_models_that_are_named_exist():
    named = {word for each in kinds.REPAIRS.values() for text in each.values() for word in text.split()}
    assert {word.strip(",;") for word in named if "_small" in word} <= set(config.names())
