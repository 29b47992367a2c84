"""What a run writes: whole or not at all, by one training at a time, and read with care."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sparse_transformer import checkpoint, config, log, metrics, origin, runs
from sparse_transformer.files import locked, replacing

HERE = Path(__file__).parent
SETTINGS = config.load("enwik8_small")


def script(name, *arguments):
    """The JSON that a script of this folder prints, in a process of its own."""
    words = [sys.executable, str(HERE / name), *map(str, arguments)]
    result = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    with replacing(path) as file:
        file.write(b"old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as file:
        file.write(b"ne")
        assert path.read_bytes() == b"old"
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_named(tmp_path):
    with replacing(tmp_path / "new" / "folder" / "file") as file:
        file.write(b"whole")
    assert (tmp_path / "new" / "folder" / "file").read_bytes() == b"whole"
    for path in (Path("/proc/file"), tmp_path / "new" / "folder" / "file" / "below"):
        with pytest.raises(
            OSError, match=rf"^cannot write {path}: (No such file|Not a directory|File exists)"
        ):
            with replacing(path):
                pass
    with (
        pytest.raises(OSError, match=r"^--out /proc/run cannot be made: No such file"),
        locked(Path("/proc/run")),
    ):
        pass


def test_a_folder_is_trained_in_by_one(tmp_path):
    with locked(tmp_path / "run"):
        other = f"""
import sys; sys.path.insert(0, {str(HERE.parents[1] / "examples")!r})
from pathlib import Path
from sparse_transformer.files import locked
with locked(Path({str(tmp_path / "run")!r})): pass
"""
        result = subprocess.run([sys.executable, "-c", other], capture_output=True, text=True)
        want = rf"run is being trained by process {os.getpid()} of \S+; wait for it, stop it, or choose another --out"
        assert result.returncode == 1
        with pytest.raises(ValueError, match=want):
            raise ValueError(result.stderr)
    with locked(tmp_path / "run"):  # free again
        pass


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("text")
    (tmp_path / "lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError), locked(tmp_path):
        pass
    assert (tmp_path / "precious").read_text() == "text"


def test_the_configuration_survives_a_disk_without_room(tmp_path, monkeypatch):
    runs.write_config(tmp_path, SETTINGS)
    before = (tmp_path / "config.json").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        runs.write_config(tmp_path, replace(SETTINGS, steps=7))
    assert (tmp_path / "config.json").read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [tmp_path / "config.json"]


def test_rows_before_the_start_stay_and_the_rest_goes(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text(
        "step,bits,gradient_norm,seconds\n0,8.0,1,1\n1,7.0,1,1\n2,6.0,1,1\n3,5."
    )  # an earlier run, killed
    again = log.Log(tmp_path, 2)
    assert [row[:2] for row in metrics.read_rows(path)] == [
        ["0", "8.0"],
        ["1", "7.0"],
    ]  # before anything is added
    again.add(2, 0.5, bits=6.5, gradient_norm=1.0, learning_rate=1e-3, valid_bits=7.5)
    again.flush()
    again.close()
    assert path.read_text().splitlines()[-1] == "2,6.5,1.0,0.5000,0.001,7.5"
    assert [row[0] for row in metrics.read_rows(path)] == ["0", "1", "2"]


@pytest.mark.parametrize(
    "content, problem",
    [
        (b"{", "Expecting property name"),
        (b"[" * 100_000, "is damaged"),
        (b"\xff\xfe", "is damaged"),
        (b"{}", "its fields are not those of a configuration"),
        (json.dumps({"layers": "three"}).encode(), "its fields are not those of a configuration"),
        (b" " * (2 << 20), "it is longer than a megabyte"),
    ],
    ids=lambda value: "",
)
def test_a_damaged_configuration_is_named(content, problem, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"config\.json is damaged \(.*wanted: the configuration that .*train"
    ) as raised:
        runs.read_config(tmp_path)
    assert problem in str(raised.value)


def test_a_field_of_the_wrong_kind_is_named(tmp_path):
    runs.write_config(tmp_path, SETTINGS)
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**fields, "layers": "three"}))
    with pytest.raises(ValueError, match="layers is a whole number, not 'three'"):
        runs.read_config(tmp_path)


@pytest.mark.parametrize(
    "arrays, problem",
    [
        ({"decayed": np.zeros(3)}, "holds no number of steps"),
        ({"step": np.float32(1)}, "holds no number of steps"),
        ({"step": np.array([{}])}, "holds object, not numbers"),
    ],
    ids=lambda value: "",
)
def test_a_checkpoint_that_is_none_is_named(arrays, problem, tmp_path):
    np.savez(tmp_path / "checkpoint.npz", **arrays)
    with pytest.raises(
        ValueError, match=rf"checkpoint\.npz is damaged \(.*{problem}.*delete it to start over"
    ):
        checkpoint.read(tmp_path)


def test_data_that_is_gone_or_another_is_refused(tmp_path):
    text = tmp_path / "text"
    text.write_bytes(b"abcdefgh" * 1000)
    run = tmp_path / "run"
    run.mkdir()
    origin.write(run, origin.measure(SETTINGS, str(text)))
    assert origin.path_of(run, None) == str(text)  # what the run began on, without --data
    assert origin.check(run, SETTINGS, str(text)) == origin.read(run)
    moved = text.rename(tmp_path / "moved")
    with pytest.raises(
        ValueError, match=r"text \(8,000 bytes, digest \w+\), which is gone from there; give --data the place"
    ):
        origin.path_of(run, None)
    origin.check(run, SETTINGS, str(moved))
    moved.write_bytes(b"abcdefgH" * 1000)
    for other in (str(moved), None):
        with pytest.raises(ValueError, match=r"was trained on .* is another data set; give --data the one"):
            origin.check(run, SETTINGS, other)


def test_mutated_files_are_read_or_refused():
    counts = script("fuzz_files.py", 150, 5)
    assert counts["files"] >= 140 and counts["MB"] < 1024
    assert all(counts[name] for name in ("CIFAR-10 pickle", "checkpoint", "WAV", "config.json"))


def test_killed_and_stopped_at_random_moments_nothing_is_lost(unbroken, tmp_path):
    counts = script("kill_runs.py", unbroken, tmp_path / "run", 2, 1)
    assert counts["kills"] == counts["signals"] == 2 and counts["completed runs"] >= 2
