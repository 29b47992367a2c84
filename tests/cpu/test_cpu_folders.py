"""Whose files are loaded as code, and what happens where nothing can be built."""

import errno
import hashlib
import os
import stat
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from blocksparse.native import cache, compiler, cuda, folders, loading
from blocksparse.native.compiler import BuildError
from blocksparse.native.libraries import Library, Unit

ROOT = Path(__file__).parents[2]


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A library, an empty cache, and warnings that come each time."""
    monkeypatch.setenv("BLOCKSPARSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BLOCKSPARSE_KERNELS", "auto")
    monkeypatch.delenv("BLOCKSPARSE_PREBUILT", raising=False)
    monkeypatch.setattr(folders, "_warn_once", folders._warn_once.__wrapped__)
    source = tmp_path / "small.cc"
    source.write_text('extern "C" int answer() { return 42; }\n')
    return Library("small", (Unit((str(source),), ("-O1",)),), tuned=False)


@pytest.fixture
def builds(monkeypatch):
    """The paths built so far, by a compiler that takes no time."""
    built = []

    def build(library, march, path):
        data = b"code"
        path.write_bytes(data + hashlib.sha256(data).digest())
        path.chmod(0o755)
        built.append(path)

    monkeypatch.setattr(compiler, "build", build)
    monkeypatch.setattr(compiler, "version", lambda: "12")
    return built


@pytest.mark.parametrize("damage", ["others may write it", "a link", "a folder"])
def test_a_file_that_others_may_have_put_there_is_built_again(small, builds, tmp_path, damage):
    path = cache.shared_object(small)
    assert cache.shared_object(small) == path and len(builds) == 1
    if damage == "others may write it":
        path.chmod(0o777)
    elif damage == "a link":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.unlink()
        path.mkdir()
        with pytest.raises(BuildError, match="Is a directory"):
            cache.shared_object(small)
        return
    assert cache.shared_object(small) == path and len(builds) == 2


def test_only_files_of_their_owners_are_read(tmp_path):
    path = tmp_path / "file"
    path.write_text("content")
    path.chmod(0o644)
    user = os.geteuid()
    assert folders.read_trusted(path, {user}) == b"content"
    assert folders.read_trusted(path, {user + 1}) is None
    path.chmod(0o664)
    assert folders.read_trusted(path, {user}) is None
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name in ("pipe", "nothing", "."):
        assert folders.read_trusted(tmp_path / name, {user}) is None


def test_a_lock_that_is_a_link_leads_nowhere(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("content")
    path = tmp_path / "x.lock"
    path.symlink_to(precious)
    with folders.lock(path):
        assert not path.is_symlink() and stat.S_IMODE(path.stat().st_mode) == 0o600
    with folders.lock(path):
        assert precious.read_text() == "content"


@pytest.mark.parametrize(
    "mode, above, used",
    [(0o755, 0o755, 1), (0o777, 0o755, 0), (0o775, 0o755, 0), (0o755, 0o777, 0), (0o755, 0o1777, 1)],
)
def test_a_prebuilt_folder_that_others_may_write_is_refused(
    small, builds, tmp_path, monkeypatch, mode, above, used
):
    folder = tmp_path / "above" / "prebuilt"
    paths = cache.build_portable(small, folder)
    folder.chmod(mode)
    folder.parent.chmod(above)
    monkeypatch.setenv("BLOCKSPARSE_PREBUILT", str(folder))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = cache.shared_object(small)
    assert (found == paths[0]) == bool(used)
    texts = [str(each.message) for each in caught]
    assert bool(used) == (not texts)
    assert used or (
        len(texts) == 1 and "is not used: others may write in" in texts[0] and "chmod go-w" in texts[0]
    )


def test_a_prebuilt_file_that_others_may_write_is_not_loaded(small, builds, tmp_path, monkeypatch):
    (path,) = cache.build_portable(small, tmp_path / "prebuilt")
    monkeypatch.setenv("BLOCKSPARSE_PREBUILT", str(tmp_path / "prebuilt"))
    assert cache.shared_object(small) == path
    path.chmod(0o666)
    assert cache.shared_object(small) != path


def test_what_a_wheel_brought_along_is_used_as_it_lies(small, builds, tmp_path, monkeypatch):
    """pip leaves the modes of its files to the umask; what is imported beside them does not ask for them either."""
    shipped = tmp_path / "package" / "prebuilt"
    (path,) = cache.build_portable(small, shipped)
    monkeypatch.setattr(folders, "SHIPPED", shipped)
    path.chmod(0o664)
    assert cache.shared_object(small) == path and len(builds) == 1
    (named,) = cache.build_portable(small, tmp_path / "named")
    monkeypatch.setenv("BLOCKSPARSE_PREBUILT", str(tmp_path / "named"))
    assert cache.shared_object(small) == named
    monkeypatch.delenv("BLOCKSPARSE_PREBUILT")
    path.rename(shipped / "of another TensorFlow.so")
    assert cache.shared_object(small).parent == tmp_path / "cache"
    shown = [folder.parent for folder in cuda.kernel_folders(tmp_path / "cache")]
    assert shown == [shipped, tmp_path / "cache"]


def test_without_a_home_nothing_is_made_in_the_working_directory(small, builds, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BLOCKSPARSE_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as without HOME and a user of that number
    before = sorted(tmp_path.iterdir())
    with pytest.warns(RuntimeWarning, match="there is no home directory.*Set BLOCKSPARSE_CACHE"):
        path = cache.shared_object(small)
    assert sorted(tmp_path.iterdir()) == before and tmp_path not in path.parents


def test_a_relative_xdg_folder_is_no_folder_and_a_tilde_is_the_home(small, builds, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BLOCKSPARSE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache.shared_object(small).parent == tmp_path / "home" / ".cache" / "blocksparse"
    monkeypatch.setenv("BLOCKSPARSE_CACHE", "~/mine")
    assert cache.shared_object(small).parent == tmp_path / "home" / "mine"
    assert not {path.name for path in tmp_path.iterdir()} & {"relative", "~"}


def test_a_cache_that_cannot_be_written_names_the_variable(small, builds, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BLOCKSPARSE_CACHE", str(tmp_path / "file" / "below"))
    with pytest.warns(
        RuntimeWarning, match=r"removed when this process ends: .*below cannot be used.*Set BLOCKSPARSE_CACHE"
    ):
        cache.shared_object(small)


def script(path, text):
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


STOPPED = "g++: fatal error: File size limit exceeded signal terminated program cc1plus."
NO_BUILD = {  # how nothing can be built, and what the warning says
    "an open quote": (lambda path: "g++ 'x", ["cannot be read (No closing quotation)", "Mend CXX"]),
    "no program": (lambda path: script(path, "\0\0\0"), ["failed:", "Install g++"]),
    "dies": (lambda path: script(path, "#!/bin/sh\nkill -9 $$\n"), ["died with", "Install g++"]),
    "dies at work": (
        lambda path: script(path, '#!/bin/sh\n[ "$1" = --version ] || kill -9 $$\n'),
        ["could not compile the small kernels", "ended without a word", "Let the compiler finish"],
    ),
    "stopped at work": (
        lambda path: script(path, f'#!/bin/sh\n[ "$1" = --version ] && exit\necho "{STOPPED}" >&2\nexit 1\n'),
        [STOPPED.rstrip("."), "Let the compiler finish"],
    ),
    "writes nothing": (lambda path: "true", ["wrote nothing", "Install g++"]),
    "strange bytes": (
        lambda path: script(path, "#!/bin/sh\nprintf '\\377\\376' >&2\nexit 1\n"),
        ["\ufffd", "g++"],
    ),
    "a full disk": (
        lambda path: script(
            path, '#!/bin/sh\n[ "$1" = --version ] && exit\necho No space left on device >&2\nexit 1\n'
        ),
        ["the disk is full", "Free some space"],
    ),
}


def load_with_one_warning(small, monkeypatch):
    monkeypatch.setattr(loading, "CPU", small)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert loading.load_library.__wrapped__() is None
    assert [each.category for each in caught] == [RuntimeWarning]
    text = str(caught[0].message)
    assert text.startswith("blocksparse runs in plain TensorFlow") and "BLOCKSPARSE_KERNELS=reference" in text
    return text


@pytest.mark.parametrize("name", NO_BUILD)
def test_a_compiler_that_fails_ends_in_one_warning(small, tmp_path, monkeypatch, name):
    command, wanted = NO_BUILD[name]
    monkeypatch.setenv("CXX", command(tmp_path / "compiler"))
    text = load_with_one_warning(small, monkeypatch)
    assert all(words in text for words in wanted), text
    assert name not in ("a full disk", "dies at work", "stopped at work") or "Install g++" not in text


FAILURES = {
    errno.ENOSPC: ["the disk is full", "Free some space, or set BLOCKSPARSE_CACHE"],
    errno.EDQUOT: ["the disk is full", "Free some space, or set BLOCKSPARSE_CACHE"],
    errno.EROFS: ["Read-only file system", "Set BLOCKSPARSE_CACHE"],
    errno.EACCES: ["Permission denied", "Set BLOCKSPARSE_CACHE"],
    errno.EMFILE: ["Too many open files", "Set BLOCKSPARSE_CACHE"],
}


@pytest.mark.parametrize("number", FAILURES)
@pytest.mark.parametrize("step", ["lock", "compile"])
def test_a_disk_that_fails_ends_in_one_warning(small, monkeypatch, number, step):
    def fails(*arguments, **options):
        raise OSError(number, os.strerror(number), "/somewhere/file")

    monkeypatch.setattr(compiler, "version", lambda: "12")
    monkeypatch.setattr(*((cache, "lock") if step == "lock" else (compiler, "build")), fails)
    text = load_with_one_warning(small, monkeypatch)
    assert all(words in text for words in [*FAILURES[number], "/somewhere/file"]), text
    assert "Install g++" not in text


def test_no_folder_at_all_ends_in_one_warning(small, tmp_path, monkeypatch):
    def fails():
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BLOCKSPARSE_CACHE", str(tmp_path / "file" / "below"))
    monkeypatch.setattr(folders, "_temporary", fails)
    monkeypatch.setattr(compiler, "version", lambda: "12")
    text = load_with_one_warning(small, monkeypatch)
    assert "no folder can be written" in text and "Set BLOCKSPARSE_CACHE" in text


def test_a_disk_that_runs_nothing_is_named(small, builds, monkeypatch):
    import tensorflow as tf

    def refuses(path):
        raise tf.errors.NotFoundError(None, None, f"{path}: failed to map segment from shared object")

    monkeypatch.setattr(tf, "load_op_library", refuses)
    text = load_with_one_warning(small, monkeypatch)
    assert "failed to map segment" in text and "mounted without noexec" in text


def test_the_import_survives_it_all(tmp_path):
    """No home, a closed standard error, an open quote: plain TensorFlow, and nothing left behind."""
    environment = {
        key: value for key, value in os.environ.items() if key not in ("HOME", "BLOCKSPARSE_CACHE")
    }
    environment |= {
        "PYTHONPATH": str(ROOT),
        "CXX": "g++ '",
        "XDG_CACHE_HOME": "~",
        "BLOCKSPARSE_KERNELS": "auto",
    }
    command = f"{sys.executable} -c 'import blocksparse; print(1)' 2>&-"
    done = subprocess.run(command, shell=True, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "1\n" and done.returncode == 0 and not list(tmp_path.rglob("*blocksparse*"))
