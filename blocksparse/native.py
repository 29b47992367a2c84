"""Compiles the C++ once for each TensorFlow, compiler and CPU, caches what it built, and loads it.

BLOCKSPARSE_PREBUILT names a folder looked in first (`python -m blocksparse.build --portable` fills one),
BLOCKSPARSE_CACHE the folder of the cache, CXX the compiler. BLOCKSPARSE_KERNELS=reference builds and loads nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import shutil
import stat
import subprocess
import tempfile
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

_ROOT = Path(__file__).parent
_DIGEST = hashlib.sha256().digest_size
_LEVELS = {  # what the CPU has to list, best level first (x86-64 psABI)
    "x86-64-v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "x86-64-v3": {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"},
    "x86-64-v2": {"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"},
}


class BuildError(RuntimeError):
    """The kernels could not be built; the message says what is missing."""


@dataclass(frozen=True)
class Unit:
    """Sources that g++ reads as one: TensorFlow's headers take 7 s, so what includes them is compiled together."""

    sources: tuple[str, ...]  # relative to this folder
    flags: tuple[str, ...]  # {include} stands for TensorFlow's headers


@dataclass(frozen=True)
class Library:
    """One shared object: units compiled side by side, then linked."""

    name: str
    units: tuple[Unit, ...]
    tuned: bool = True  # compiled for the CPU at hand
    link: tuple[str, ...] = ()  # {lib} stands for the folder of TensorFlow's libraries

    def sources(self) -> list[Path]:
        """Every file that goes into it, headers included."""
        named = [_ROOT / source for unit in self.units for source in unit.sources]
        headers = {header for source in named for header in source.parent.glob("*.h")}
        return [*named, *sorted(headers | set((_ROOT / "cpu").glob("*.h")))]


_FAST, _SMALL = ("-O3",), ("-O1",)
CPU = Library(
    "cpu",
    (
        Unit(("cpu/ops.cc", "cpu/kernels.cc", "cpu/plan_op.cc"), _SMALL),
        Unit(("cpu/query_tile.cc", "cpu/key_tile.cc"), _FAST),
        Unit(("cpu/forward.cc", "cpu/backward.cc", "cpu/plan.cc", "cpu/call.cc"), _FAST),
    ),
)
# The kernels themselves are Triton's, compiled when first needed: this is what launches them.
GPU = Library(
    "gpu",
    (
        Unit(("gpu/attention_gpu.cc", "gpu/plan_cache.cc", "gpu/timing.cc"), _SMALL),
        Unit(("gpu/launcher.cc", "gpu/compiler.cc", "gpu/exports.cc", "cpu/plan.cc"), _SMALL),
    ),
    tuned=False,
    link=("-ldl",),
)
# Its own library because XLA's headers take half a minute: built when something is first compiled with XLA.
XLA = Library(
    "xla",
    (
        Unit(
            ("xla/attention_xla.cc", "cpu/plan.cc"),
            ("-O0", "-I{include}/external/highwayhash", "-I{include}/external/farmhash_archive/src"),
        ),
        Unit(("xla/custom_call.cc",), _SMALL),
    ),
    tuned=False,
    link=("-L{lib}", "-l:libtensorflow_cc.so.2"),
)

_loading = threading.Lock()


def load_library() -> ModuleType | None:
    """The CPU ops, built first if need be; None, after one warning, where they cannot be built.

    Returns the module of tf.load_op_library. Later calls return what the first one did.
    """
    with _loading:
        return _load_once()


@functools.cache
def _load_once() -> ModuleType | None:
    if os.environ.get("BLOCKSPARSE_KERNELS") == "reference":
        return None
    try:
        return load(CPU)
    except BuildError as error:
        warnings.warn(
            f"blocksparse runs in plain TensorFlow, several times slower and with more memory: {error}. Install g++, "
            "or set BLOCKSPARSE_KERNELS=reference to choose this and hear no more of it.",
            RuntimeWarning,
            stacklevel=3,
        )
        return None


def load(library: Library) -> ModuleType:
    """Load a library from BLOCKSPARSE_PREBUILT, from the cache, or after building it. Raises BuildError."""
    import tensorflow as tf

    path = library_path(library)
    try:
        return tf.load_op_library(str(path))
    except tf.errors.OpError as error:
        raise BuildError(f"TensorFlow {tf.__version__} cannot load {path}: {error.message}") from error


def library_path(library: Library) -> Path:
    """The intact shared object of a library, built now if there is none. Raises BuildError."""
    path = built_path(library)
    if path is None:
        path = _cache_path(library)
        with _lock(path.with_suffix(".lock")):
            if not _intact(path):  # another process may have built it while this one waited
                _build(library, ("-march=native",) if library.tuned else (), path)
    return path


def built_path(library: Library) -> Path | None:
    """The intact shared object of a library, if there is one. Raises BuildError where that cannot be told."""
    prebuilt = os.environ.get("BLOCKSPARSE_PREBUILT")
    if prebuilt:
        for level in _levels() if library.tuned else ["any"]:
            path = Path(prebuilt) / _portable_name(library, level)
            if _intact(path):
                return path
    path = _cache_path(library)
    return path if _intact(path) else None


def _cache_path(library: Library) -> Path:
    machine = [_cpu(field) for field in ("model name", "flags", "Features")] if library.tuned else []
    key = _hash(_identity(library), _run([_compiler(), "--version"]), *machine)
    return cache_folder() / f"{library.name}-{key}.so"


def build_portable(library: Library, folder: Path) -> list[Path]:
    """Build a library into `folder` for BLOCKSPARSE_PREBUILT, a tuned one for each x86-64 level. Raises BuildError."""
    folder.mkdir(parents=True, exist_ok=True)
    marches = {level: (f"-march={level}",) for level in _LEVELS} if library.tuned else {"any": ()}
    paths = [folder / _portable_name(library, level) for level in marches]
    for path, march in zip(paths, marches.values(), strict=True):
        _build(library, march, path)
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


def _build(library: Library, march: tuple[str, ...], path: Path) -> None:
    import tensorflow as tf

    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{library.name}-") as work:
        objects = [f"{work}/{number}.o" for number in range(len(library.units))]
        _compile(library, march, objects)
        linked = Path(work) / "linked.so"
        flags = [flag.format(lib=tf.sysconfig.get_lib()) for flag in library.link]
        _run([_compiler(), "-shared", *objects, "-o", str(linked), *tf.sysconfig.get_link_flags(), *flags])
        data = linked.read_bytes()
        linked.write_bytes(data + hashlib.sha256(data).digest())  # ELF ignores what follows its sections
        os.replace(linked, path)


def _compile(library: Library, march: tuple[str, ...], objects: list[str]) -> None:
    """All units at once, each a list of includes on the compiler's standard input."""
    import tensorflow as tf

    common = [_compiler(), *tf.sysconfig.get_compile_flags(), *march, "-fPIC", "-w", "-x", "c++", "-c", "-"]
    running = []
    for unit, target in zip(library.units, objects, strict=True):
        flags = [flag.format(include=tf.sysconfig.get_include()) for flag in unit.flags]
        command = [*common, *flags, "-o", target]
        running.append(subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    texts = ["".join(f'#include "{_ROOT / source}"\n' for source in unit.sources) for unit in library.units]
    errors = [process.communicate(text)[1] for process, text in zip(running, texts, strict=True)]
    failed = [error for process, error in zip(running, errors, strict=True) if process.returncode]
    if failed:
        raise BuildError(f"{_compiler()} could not compile the {library.name} kernels:\n{failed[0][-2000:]}")


def _intact(path: Path) -> bool:
    """True for a complete file: loading half a shared object would kill the process."""
    try:
        data = path.read_bytes()
    except OSError:
        return False
    return len(data) > _DIGEST and hashlib.sha256(data[:-_DIGEST]).digest() == data[-_DIGEST:]


def _compiler() -> str:
    compiler = shutil.which(os.environ.get("CXX") or "g++")
    if compiler is None:
        raise BuildError("there is no C++ compiler (g++, or the one that CXX names)")
    return compiler


def _run(command: list[str]) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        output = getattr(error, "stderr", None) or str(error)
        raise BuildError(f"{command[0]} failed:\n{output[-2000:]}") from error


def _identity(library: Library) -> str:
    """What a built file depends on besides the machine: TensorFlow, its ABI, the sources, the flags."""
    import tensorflow as tf

    flags = [flag for flag in tf.sysconfig.get_compile_flags() if not flag.startswith("-I")]
    sources = [source.read_text() for source in library.sources()]
    return _hash(tf.__version__, *flags, repr(library), *sources)


def _portable_name(library: Library, level: str) -> str:
    return f"{library.name}-{_identity(library)}-{level}.so"


def _levels() -> list[str]:
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
