"""yardsticks.py: what compressors need for held-out data, by tools that are here or stand in for such."""

import json
import lzma
import sys

import numpy as np
import pytest
import yardsticks
from sparse_transformer import compressors, config, data, origin, runs

SPLITS = [
    data.Stream(np.frombuffer(text, np.uint8), 16)
    for text in (b"one two three " * 400, b"two three one " * 40)
]


@pytest.fixture
def path(tmp_path, monkeypatch):
    """An empty folder of programs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def program(path, script):
    path.write_text(f"#!{sys.executable}\n{script}")
    path.chmod(0o755)


def by_name(rows):
    return {row["name"]: row for row in rows}


def test_text_is_compressed_given_what_was_learnt(path):
    (row,) = compressors.stream(*SPLITS, "words.txt")
    train, test = (split.tokens.tobytes() for split in SPLITS)
    both, alone = (len(lzma.compress(each, preset=9 | lzma.PRESET_EXTREME)) for each in (train + test, train))
    assert row == {"name": "xz -9e", "bits": (both - alone) * 8 / len(test), "note": "here"}
    (row,) = compressors.stream(*SPLITS, "words.txt", last=6)
    alone = len(lzma.compress(train[-6:], preset=9 | lzma.PRESET_EXTREME))
    both = len(lzma.compress(train[-6:] + test, preset=9 | lzma.PRESET_EXTREME))
    note = "here, given the last 6 bytes alone"
    assert row == {"name": "xz -9e", "bits": (both - alone) * 8 / len(test), "note": note}


def test_a_tool_that_is_missing_has_a_recorded_figure_for_gcide_alone(path):
    rows = by_name(compressors.stream(*SPLITS, "gcide.dict.dz"))
    assert [rows[name]["bits"] for name in ("7z PPMd, o=16, 512 MB", "zpaq -m5")] == [1.529, 1.275]
    assert rows["zpaq -m5"]["note"] == "recorded, given all of it: the tool is not here"
    assert rows["xz -9e"]["note"] == "here"


HALF = """import sys, pathlib
{check}
content = pathlib.Path(sys.argv[{content}]).read_bytes()
pathlib.Path(sys.argv[{archive}]).write_bytes(content[::2])
"""


def test_tools_that_are_here_are_asked(path):
    program(
        path / "7zz", HALF.format(check="assert 'm0=PPMd:o=16:mem=512m' in sys.argv[2]", archive=3, content=4)
    )
    program(path / "zpaq", HALF.format(check="assert sys.argv[4] == '-m5'", archive=2, content=3))
    rows = by_name(compressors.stream(*SPLITS, "gcide.dict.dz"))
    assert [rows[name]["note"] for name in ("7z PPMd, o=16, 512 MB", "zpaq -m5")] == ["here", "here"]
    assert rows["zpaq -m5"]["bits"] == 4  # half the bytes of the test split


def test_a_tool_that_fails_says_so(path):
    program(path / "zpaq", "import sys; sys.exit('no memory')")
    with pytest.raises(ValueError, match=r"zpaq a .* ended with status 1: no memory"):
        compressors.stream(*SPLITS, "x")


def test_images_are_files_of_their_own_and_one_picture(path, monkeypatch):
    monkeypatch.setattr(compressors.importlib.util, "find_spec", lambda name: None)  # no plugin of Pillow's
    grey = np.zeros((30, 1, 8, 8), np.uint8)
    grey[:, :, 2] = np.arange(30)[:, None, None]
    source = data.Images([grey], np.arange(30))
    rows = by_name(compressors.images(source, (8, 8, 1), "fashion"))
    assert rows["JPEG XL, lossless, a file each"]["note"] == "recorded, 1,000 images: no tool for it is here"
    assert not any("JPEG" in row["name"] for row in compressors.images(source, (8, 8, 1), "cifar10"))
    assert rows["PNG, a file each"]["note"] == "25 images"
    assert rows["PNG, one picture of all"]["bits"] < rows["PNG, a file each"]["bits"] / 5
    assert rows["WebP, lossless, one picture of all"]["bits"] < rows["WebP, lossless, a file each"]["bits"]


def test_the_command_takes_a_runs_own_data(tmp_path, monkeypatch, path, capsys):
    text = tmp_path / "text"
    text.write_bytes(b"over and over " * 1000)
    settings = config.load("enwik8_small").override(["grid=(4, 16)"])
    runs.write_config(tmp_path, settings)
    origin.write(tmp_path, origin.measure(settings, str(text)))
    monkeypatch.setattr(sys, "argv", ["yardsticks.py", str(tmp_path), "--json", str(tmp_path / "found.json")])
    yardsticks.main()
    (row,) = json.loads((tmp_path / "found.json").read_text())
    assert capsys.readouterr().out == f"xz -9e: {row['bits']:.3f} bits per byte; here\n"
