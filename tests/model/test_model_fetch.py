"""fetch.py with an apt-get and a dpkg that stand in for Debian's."""

import os
import subprocess
import sys

import fetch
import pytest
from training_runs import EXAMPLES

APT_GET = """#!/bin/sh
[ "$1 $2" = "download dict-gcide" ] || exit 9
{fails}
echo packed > dict-gcide_0.48_all.deb
"""
DPKG = """#!/bin/sh
[ "$1 $2" = "-x dict-gcide_0.48_all.deb" ] || exit 9
/bin/mkdir -p "$3/{folder}"
echo articles > "$3/{folder}/gcide.dict.dz"
"""


def run(tmp_path, tools):
    """(status, output) of fetching GCIDE with nothing but these tools on the path."""
    path = tmp_path / "bin"
    path.mkdir()
    for name, script in tools.items():
        (path / name).write_text(script)
        (path / name).chmod(0o755)
    words = [sys.executable, str(EXAMPLES / "fetch.py"), "gcide", "--out", str(tmp_path / "data" / "gcide")]
    result = subprocess.run(words, env={**os.environ, "PATH": str(path)}, capture_output=True, text=True)
    return result.returncode, result.stdout + result.stderr


def tools(fails="", folder="usr/share/dictd"):
    return {"apt-get": APT_GET.format(fails=fails), "dpkg": DPKG.format(folder=folder)}


def test_the_files_arrive_and_stay(tmp_path):
    out = tmp_path / "data" / "gcide"
    assert run(tmp_path, tools()) == (0, f"apt-get download dict-gcide\n{out} holds gcide.dict.dz\n")
    assert (out / "gcide.dict.dz").read_text() == "articles\n" and len(list(out.iterdir())) == 1
    (tmp_path / "bin").rename(tmp_path / "away")
    assert run(tmp_path, {}) == (0, f"{out} holds gcide.dict.dz\n")  # nothing is downloaded twice


@pytest.mark.parametrize(
    "tools, problem",
    [
        ({}, "there is no apt-get here, as Debian and Ubuntu have; download the .deb at https://packages.debian.org"),
        (tools(fails='echo "E: Unable to locate package" >&2; exit 100'), "dict-gcide: E: Unable to locate package"),
        (tools(folder="elsewhere"), "has no gcide.dict.dz in usr/share/dictd"),
    ],
    ids=["no apt-get", "not found", "another package"],
)  # fmt: skip
def test_what_fails_says_how_else_to_get_them(tools, problem, tmp_path):
    status, output = run(tmp_path, tools)
    assert status == 1 and output.count("fetch.py: ") == 1 and "Traceback" not in output
    assert problem in output and f"copy gcide.dict.dz of its usr/share/dictd to {tmp_path}" in output
    assert not (tmp_path / "data").exists()


def test_what_is_fetched_is_what_the_readers_ask_for():
    from sparse_transformer.formats import idx, text

    for name, package in fetch.PACKAGES.items():
        advice = {"fashion": idx.FASHION, "gcide": text.DICTIONARY}[name]
        assert f"examples/fetch.py {name} --out" in advice and all(file in advice for file in package.files)


def test_a_file_in_the_folders_place_is_named_before_anything_is_downloaded(tmp_path):
    (tmp_path / "data").write_text("mine")
    status, output = run(tmp_path, tools())
    assert (status, output) == (
        1,
        f"fetch.py: --out {tmp_path / 'data' / 'gcide'} is a file, or goes through one; give a folder\n",
    )
