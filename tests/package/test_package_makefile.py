"""The Makefile's virtual environment: of a Python that TensorFlow has, or not made at all."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    return tmp_path


def python(path, major, minor):
    """A program that takes itself for another Python; `-m venv FOLDER` puts a copy of it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "#!/bin/sh\n"
        f'if [ "$1" = --version ]; then echo Python {major}.{minor}.0\n'
        f'elif [ "$1" = -m ]; then mkdir -p "$3/bin" && cp "$0" "$3/bin/python"\n'
        f'else exec {sys.executable} -c "import sys; sys.version_info = ({major}, {minor}, 0); $2"; fi\n'
    )
    path.chmod(0o755)
    return path


def make(folder, *arguments):
    return subprocess.run(
        ["make", ".venv/bin/python", *arguments], cwd=folder, capture_output=True, text=True, timeout=60
    )


def version(folder):
    return subprocess.check_output([folder / ".venv/bin/python", "--version"], text=True).strip()


@pytest.mark.parametrize("minor", [9, 14])
def test_another_python_is_refused_before_anything_is_made(folder, minor):
    result = make(folder, f"PYTHON={python(folder / 'other', 3, minor)}")
    assert result.returncode != 0 and not (folder / ".venv").exists()
    assert f"other is Python 3.{minor}.0, but TensorFlow needs Python 3.10 to 3.13" in result.stderr
    assert "make PYTHON=python3.12" in result.stderr


def test_a_venv_of_an_old_python_is_made_anew(folder):
    python(folder / ".venv/bin/python", 3, 9)
    (folder / ".venv/test.installed").touch()
    assert make(folder, f"PYTHON={python(folder / 'new', 3, 12)}").returncode == 0
    assert version(folder) == "Python 3.12.0" and not (folder / ".venv/test.installed").exists()


def test_a_venv_follows_the_python_that_is_named(folder):
    assert make(folder, f"PYTHON={python(folder / 'old', 3, 11)}").returncode == 0
    (folder / ".venv/test.installed").touch()
    assert make(folder, f"PYTHON={folder / 'old'}").returncode == 0
    assert (folder / ".venv/test.installed").exists()  # the same: kept
    assert make(folder, f"PYTHON={python(folder / 'new', 3, 12)}").returncode == 0
    assert version(folder) == "Python 3.12.0" and not (folder / ".venv/test.installed").exists()


def test_a_python_that_will_not_do_spoils_no_venv(folder):
    python(folder / ".venv/bin/python", 3, 13)
    make(folder, f"PYTHON={python(folder / 'other', 3, 9)}")
    assert version(folder) == "Python 3.13.0"


def test_a_venv_that_works_is_kept_where_no_python_is_named(folder):
    python(folder / ".venv/bin/python", 3, 13)
    (folder / ".venv/test.installed").touch()
    assert make(folder).returncode == 0
    assert version(folder) == "Python 3.13.0" and (folder / ".venv/test.installed").exists()
