"""The first commands a newcomer runs, beyond those in README.md."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command, **env):
    """Runs a script of the repository in a process of its own, without the silence that tests ask of TensorFlow."""
    inherited = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env={**inherited, **env},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_enwik8_trains_on_given_text(tmp_path):
    text = tmp_path / "text"
    text.write_text("One two three, said the first line. " * 200)
    result = run("examples/enwik8.py", "--smoke", "--data", text)
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stderr.replace("\r", "\n").splitlines() if line.strip()]
    assert all("step" in line for line in lines), "TensorFlow says something beside the progress"
    assert re.search(r"^validation \d\.\d{3} bits per byte", result.stdout, re.MULTILINE)


@pytest.mark.parametrize(("content", "message"), [(None, "cannot read"), (b"short", "has 5 bytes")])
def test_enwik8_names_the_file_that_will_not_do(tmp_path, content, message, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")  # as for a command
    path = tmp_path / "enwik8"
    if content is not None:
        path.write_bytes(content)
    load_splits = runpy.run_path(str(ROOT / "examples/enwik8.py"))["load_splits"]
    with pytest.raises(SystemExit, match=message) as stopped:
        load_splits(str(path), n_ctx=64)
    assert str(path) in str(stopped.value)


@pytest.fixture
def path_without_compilers(tmp_path):
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("sh", "uname", "env", "ls"):
        (folder / tool).symlink_to(f"/bin/{tool}")
    return str(folder)


def test_without_a_compiler_the_fallback_runs_and_says_so(path_without_compilers, tmp_path):
    env = {"PATH": path_without_compilers, "XDG_CACHE_HOME": str(tmp_path / "cache"), "HOME": str(tmp_path)}
    small = "--n-ctx 256 --blocksize 16 --local-attn-ctx 16 --n-embd 64 --heads 2".split()
    result = run("attention.py", *small, **env)
    assert result.returncode == 0, result.stderr
    assert "reference" in result.stdout and "cpu" not in result.stdout
    assert result.stderr.count("blocksparse runs in plain TensorFlow") == 1, result.stderr
    assert "Install g++" in result.stderr
