"""Building, caching and loading: on a library that compiles in a second."""

import os
import re
import shutil
import stat
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from blocksparse.native import cache, compiler, loading
from blocksparse.native.compiler import BuildError
from blocksparse.native.libraries import Library, Unit

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A library of one function, and an empty cache."""
    monkeypatch.setenv("BLOCKSPARSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("BLOCKSPARSE_PREBUILT", raising=False)
    source = tmp_path / "small.cc"
    source.write_text('extern "C" int answer() { return 42; }\n')
    return Library("small", (Unit((str(source),), ("-O1",)),))


@pytest.fixture
def builds(monkeypatch):
    """The paths built so far."""
    built, build = [], compiler.build
    monkeypatch.setattr(compiler, "build", lambda *args: built.append(args[-1]) or build(*args))
    return built


@needs_compiler
def test_it_is_built_once_and_again_when_a_source_changes(small, builds):
    path = cache.shared_object(small)
    assert cache.shared_object(small) == path and builds == [path]
    Path(small.units[0].sources[0]).write_text('extern "C" int answer() { return 43; }\n')
    assert cache.shared_object(small) != path and len(builds) == 2


@needs_compiler
@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text"])
def test_a_damaged_file_is_built_again(small, builds, damage):
    path = cache.shared_object(small)
    data = path.read_bytes()
    middle = len(data) // 2
    broken = {
        "cut": data[:middle],
        "flip": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
        "empty": b"",
        "text": b"not a shared object" * 9,
    }
    path.write_bytes(broken[damage])
    assert cache.shared_object(small) == path and len(builds) == 2 and path.read_bytes() == data
    loading.load(small)


@needs_compiler
@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_built_again(small, builds):
    cache.shared_object(small).chmod(0)
    loading.load(small)
    assert len(builds) == 2


@needs_compiler
def test_what_a_killed_build_left_is_removed_by_the_next(small, tmp_path, monkeypatch):
    said, spy = tmp_path / "said", tmp_path / "g++"
    spy.write_text(f'#!/bin/sh\necho "$@" >> {said}\nexec g++ "$@"\n')
    spy.chmod(0o755)
    monkeypatch.setenv("CXX", str(spy))
    path = cache.shared_object(small)
    (made_in,) = set(re.findall(r"/(\.small-\S+)/linked.so", said.read_text()))
    left, other = path.with_name(f"{made_in}-left"), path.with_name(".small-0123-other")
    for folder in (left, other):
        folder.mkdir()
        (folder / "0.o").write_bytes(b"half")
    path.unlink()
    assert cache.shared_object(small) == path and not left.exists() and other.exists()


def test_ctrl_c_ends_the_compiler_and_what_it_started(small, tmp_path, monkeypatch):
    started, compiler_ = tmp_path / "started", tmp_path / "g++"
    compiler_.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exit\nsleep 60 &\necho $! > {started}\nwait\n')
    compiler_.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler_))

    def interrupted(*_):
        while not (started.exists() and started.read_text().strip()):
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compiler.build(small, (), tmp_path / "small.so")
    state, until = Path(f"/proc/{started.read_text().strip()}/stat"), time.monotonic() + 10
    while state.exists() and state.read_text().split()[2] != "Z" and time.monotonic() < until:
        time.sleep(0.01)
    assert not state.exists() or state.read_text().split()[2] == "Z"


@needs_compiler
def test_processes_that_start_at_once_build_once(small, tmp_path):
    counting = tmp_path / "counting-g++"
    counting.write_text(
        f'#!/bin/sh\ncase "$*" in *-shared*) echo x >> {tmp_path}/count;; esac\nexec g++ "$@"\n'
    )
    program = (
        "import sys\nfrom blocksparse.native import loading\nfrom blocksparse.native.libraries import Library, Unit\n"
        "loading.load(Library('small', (Unit((sys.argv[1],), ('-O1',)),)))\n"
    )
    environment = {**os.environ, "CXX": f"sh '{counting}'", "BLOCKSPARSE_KERNELS": "reference"}
    command = [sys.executable, "-c", program, small.units[0].sources[0]]
    running = [
        subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    said = "".join(process.communicate()[1] for process in running)
    assert [process.returncode for process in running] == [0, 0, 0]
    assert said.count("blocksparse: compiling its small library, once") == 1
    assert (tmp_path / "count").read_text() == "x\n"


@needs_compiler
def test_a_source_that_does_not_compile(small):
    Path(small.units[0].sources[0]).write_text("int broken(\n")
    with pytest.raises(BuildError, match="could not compile the small kernels"):
        cache.shared_object(small)
    assert [path.suffix for path in cache.cache_folder().iterdir()] == [".lock"]


@needs_compiler
def test_a_header_that_this_tensorflow_does_not_ship(small):
    library = replace(small, headers=("tensorflow/core/framework/op.h", "xla/none.h"))
    with pytest.raises(
        BuildError, match=r"TensorFlow \S+ ships no xla/none\.h, which the small library includes"
    ):
        cache.shared_object(library)


@pytest.mark.parametrize("compiler", ["nowhere/g++", "false"])
def test_without_a_compiler_one_warning_says_what_it_costs(small, monkeypatch, compiler):
    monkeypatch.setattr(loading, "CPU", small)
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setenv("BLOCKSPARSE_KERNELS", "auto")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert loading.load_library.__wrapped__() is None
    assert len(caught) == 1 and caught[0].category is RuntimeWarning
    message = str(caught[0].message)
    assert "g++" in message and "slower" in message and "BLOCKSPARSE_KERNELS=reference" in message


def test_the_reference_builds_nothing(monkeypatch, builds):
    monkeypatch.setenv("BLOCKSPARSE_KERNELS", "reference")
    assert loading.load_library.__wrapped__() is None and not builds


def test_the_cache_is_private(tmp_path, monkeypatch):
    monkeypatch.setenv("BLOCKSPARSE_CACHE", str(tmp_path / "a" / "b"))
    folder = cache.cache_folder()
    assert folder == tmp_path / "a" / "b" and stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o777)
    assert cache.cache_folder() == folder and not folder.stat().st_mode & 0o022


def test_a_folder_that_is_not_ours_is_not_used(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for name in ("link", "file/below"):
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("BLOCKSPARSE_CACHE", str(tmp_path / name))
        folder = cache.cache_folder()
        assert tmp_path not in folder.parents and stat.S_IMODE(folder.stat().st_mode) == 0o700


@needs_compiler
def test_prebuilt_files_need_no_compiler_and_fit_the_processor(small, tmp_path, monkeypatch, builds):
    paths = cache.build_portable(small, tmp_path / "prebuilt")
    assert [path.stem.split("-", 2)[-1] for path in paths] == ["x86-64-v4", "x86-64-v3", "x86-64-v2"]
    monkeypatch.setenv("BLOCKSPARSE_PREBUILT", str(tmp_path / "prebuilt"))
    monkeypatch.setenv("CXX", "nowhere/g++")
    every = set().union(*cache._LEVELS.values())
    for flags, best in ((every, 0), (every - {"avx512f"}, 1), (every - {"fma"}, 2)):
        monkeypatch.setattr(cache, "cpu_field", lambda field, flags=flags: " ".join(flags))
        assert cache.shared_object(small) == paths[best]
    paths[2].write_bytes(b"damaged")
    with pytest.raises(BuildError, match="no C\\+\\+ compiler"):
        cache.shared_object(small)
    assert len(builds) == 3


def test_the_command_imports_without_warnings_and_builds_nothing_on_the_way(tmp_path):
    command = [sys.executable, "-W", "error::RuntimeWarning", "-m", "blocksparse.build", "--help"]
    environment = {**os.environ, "BLOCKSPARSE_CACHE": str(tmp_path / "cache")}
    help = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    assert "--portable DIR" in help and not (tmp_path / "cache").exists()
