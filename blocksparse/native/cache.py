"""Built libraries: each is compiled once for every TensorFlow, compiler, processor and source.

BLOCKSPARSE_PREBUILT names a folder looked in first (`python -m blocksparse.build --portable` fills one), then come the
files that a wheel brought along, then the cache in BLOCKSPARSE_CACHE (folders.py). CXX is the compiler's command.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from pathlib import Path

from . import compiler
from .folders import (
    cache_folder,
    failure,
    lock,
    owners_of,
    prebuilt_folder,
    read_trusted,
    shipped_folder,
    warn_of_a_passing_folder,
)
from .libraries import Library
from .machine import cpu_field

_LEVELS = {  # what the CPU has to list, best level first (x86-64 psABI)
    "x86-64-v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "x86-64-v3": {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"},
    "x86-64-v2": {"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"},
}


def shared_object(library: Library) -> Path:
    """A library's file, whole: prebuilt, cached, or built now. Raises compiler.BuildError."""
    try:
        return _find_prebuilt(library) or _cached(library)
    except OSError as error:  # what stands in the way of compiling: the message says how to go on
        raise failure(error, cache_folder()) from error


def _find_prebuilt(library: Library) -> Path | None:
    named, shipped = prebuilt_folder(), shipped_folder()
    if named is None and shipped is None:
        return None
    names = [_portable_name(library, _identity(library), level) for level in _levels(library)]
    if named is not None:
        owners = owners_of(named)
        for name in names:
            if _is_usable(named / name, owners):
                return named / name
    return next((shipped / name for name in names if shipped and (shipped / name).exists()), None)


def _cached(library: Library) -> Path:
    machine = [cpu_field(field) for field in ("model name", "flags", "Features")] if library.tuned else []
    name = f"{library.name}-{_hash(_identity(library), compiler.version(), *machine)}"
    path = cache_folder() / f"{name}.so"
    if not _is_usable(path):
        with lock(path.with_suffix(".lock")):
            if not _is_usable(path):  # another process may have built it while this one waited
                compiler.require_headers(library)
                warn_of_a_passing_folder()
                _say(f"blocksparse: compiling its {library.name} library, once, into {path.parent} ...")
                compiler.clear(path)
                compiler.build(library, ("-march=native",) if library.tuned else (), path)
    return path


def _is_usable(path: Path, owners: set[int] | None = None) -> bool:
    """Whether it is a whole library of this user's, or of one of `owners`."""
    data = read_trusted(path, owners or {os.geteuid()})
    return data is not None and compiler.is_whole(data)


def _say(notice: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # standard error may be closed, or a file on a full disk
        print(notice, file=sys.stderr, flush=True)


def build_portable(library: Library, folder: Path) -> list[Path]:
    """Build a library into `folder` for BLOCKSPARSE_PREBUILT, a tuned one for each x86-64 level.

    Raises compiler.BuildError.
    """
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    identity = _identity(library)
    marches = {level: (f"-march={level}",) for level in _LEVELS} if library.tuned else {"any": ()}
    paths = [folder / _portable_name(library, identity, level) for level in marches]
    for path, march in zip(paths, marches.values(), strict=True):
        compiler.build(library, march, path)
    return paths


def _identity(library: Library) -> str:
    """What a built file depends on besides the machine: TensorFlow, its ABI, the sources, the flags."""
    import tensorflow as tf

    flags = [flag for flag in tf.sysconfig.get_compile_flags() if not flag.startswith("-I")]
    sources = [source.read_text() for source in library.sources()]
    return _hash(tf.__version__, *flags, repr(library), *sources)


def _portable_name(library: Library, identity: str, level: str) -> str:
    return f"{library.name}-{identity}-{level}.so"


def _levels(library: Library) -> list[str]:
    """The x86-64 levels that this CPU has, best first; "any" for a library that is the same on all."""
    if not library.tuned:
        return ["any"]
    flags, levels = set(cpu_field("flags").split()), list(_LEVELS)
    return [level for at, level in enumerate(levels) if all(_LEVELS[below] <= flags for below in levels[at:])]


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
