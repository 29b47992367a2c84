"""Where built libraries lie: each is compiled once for every TensorFlow, compiler, processor and source.

BLOCKSPARSE_PREBUILT names a folder looked in first (`python -m blocksparse.build --portable` fills one),
BLOCKSPARSE_CACHE the folder of the cache, CXX the compiler's command.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from . import compiler
from .libraries import Library

_LEVELS = {  # what the CPU has to list, best level first (x86-64 psABI)
    "x86-64-v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "x86-64-v3": {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"},
    "x86-64-v2": {"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"},
}


def shared_object(library: Library) -> Path:
    """A library's file, whole: prebuilt, cached, or built now. Raises compiler.BuildError."""
    identity = _identity(library)
    prebuilt = os.environ.get("BLOCKSPARSE_PREBUILT")
    if prebuilt:
        for level in _levels() if library.tuned else ["any"]:
            path = Path(prebuilt) / _portable_name(library, identity, level)
            if compiler.is_whole(path):
                return path
    machine = [_cpu(field) for field in ("model name", "flags", "Features")] if library.tuned else []
    path = cache_folder() / f"{library.name}-{_hash(identity, compiler.version(), *machine)}.so"
    if not compiler.is_whole(path):
        with _lock(path.with_suffix(".lock")):
            if not compiler.is_whole(path):  # another process may have built it while this one waited
                notice = f"blocksparse: compiling its {library.name} library, once, into {path.parent} ..."
                print(notice, file=sys.stderr, flush=True)
                compiler.build(library, ("-march=native",) if library.tuned else (), path)
    return path


def build_portable(library: Library, folder: Path) -> list[Path]:
    """Build a library into `folder` for BLOCKSPARSE_PREBUILT, a tuned one for each x86-64 level.

    Raises compiler.BuildError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    identity = _identity(library)
    marches = {level: (f"-march={level}",) for level in _LEVELS} if library.tuned else {"any": ()}
    paths = [folder / _portable_name(library, identity, level) for level in marches]
    for path, march in zip(paths, marches.values(), strict=True):
        compiler.build(library, march, path)
    return paths


def cache_folder() -> Path:
    """The folder of built files: BLOCKSPARSE_CACHE, else blocksparse under XDG_CACHE_HOME or ~/.cache.

    What lies in it is loaded as code, so only this user may write there; where that cannot be had (no home, a folder of
    somebody else's), files live in a folder that is removed when the process ends.
    """
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(os.environ.get("BLOCKSPARSE_CACHE") or Path(home) / "blocksparse")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
        private = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
        if private and status.st_mode & 0o022:
            folder.chmod(0o700)
        if private and os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return Path(_process_folder().name)


@functools.cache
def _process_folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="blocksparse-")  # removed when the interpreter ends


def _identity(library: Library) -> str:
    """What a built file depends on besides the machine: TensorFlow, its ABI, the sources, the flags."""
    import tensorflow as tf

    flags = [flag for flag in tf.sysconfig.get_compile_flags() if not flag.startswith("-I")]
    sources = [source.read_text() for source in library.sources()]
    return _hash(tf.__version__, *flags, repr(library), *sources)


def _portable_name(library: Library, identity: str, level: str) -> str:
    return f"{library.name}-{identity}-{level}.so"


def _levels() -> list[str]:
    """The x86-64 levels that this CPU has, best first."""
    flags, levels = set(_cpu("flags").split()), list(_LEVELS)
    return [level for at, level in enumerate(levels) if all(_LEVELS[below] <= flags for below in levels[at:])]


@functools.cache
def _cpu(field: str) -> str:
    """A field of the first processor in /proc/cpuinfo; empty where there is none."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name.strip() == field:
                return value.strip()
    return ""


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the kernel lets go when this process ends, however it ends
        yield
