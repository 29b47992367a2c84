"""g++ on one library: its units side by side, linked into a file that tells whether it is whole."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from .libraries import ROOT, Library

_DIGEST = hashlib.sha256().digest_size


class BuildError(RuntimeError):
    """The kernels could not be built; the message says what is missing, `repair` what to do."""

    def __init__(self, text: str, repair: str = "Install g++"):
        super().__init__(text)
        self.repair = repair


def version() -> str:
    """What the compiler says of itself. Raises BuildError without one."""
    return _run([*_compiler(), "--version"])


def missing(library: Library) -> str | None:
    """Why no compiler could build a library for this TensorFlow, if that is so."""
    import tensorflow as tf

    for header in library.headers:
        if not (Path(tf.sysconfig.get_include()) / header).exists():
            return f"TensorFlow {tf.__version__} ships no {header}, which the {library.name} library includes"
    return None


def require_headers(library: Library) -> None:
    """Raises BuildError where no compiler could build it."""
    if reason := missing(library):
        raise BuildError(reason, "Install TensorFlow 2.20 or newer, which ships it")


def build(library: Library, march: tuple[str, ...], path: Path) -> None:
    """Compile a library for a processor into `path`, which holds all of it or does not change. Raises BuildError."""
    import tensorflow as tf

    require_headers(library)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=_unfinished(path)) as work:
        objects = [f"{work}/{number}.o" for number in range(len(library.units))]
        _compile(library, march, objects)
        linked = Path(work) / "linked.so"
        flags = [flag.format(lib=tf.sysconfig.get_lib()) for flag in library.link]
        _run([*_compiler(), "-shared", *objects, "-o", str(linked), *tf.sysconfig.get_link_flags(), *flags])
        if not linked.exists():
            raise BuildError(f"{shlex.join(_compiler())} ended without an error and wrote nothing")
        data = linked.read_bytes()
        linked.write_bytes(data + hashlib.sha256(data).digest())  # ELF ignores what follows its sections
        linked.chmod(0o755)  # whatever the umask: what others may write is not loaded
        os.replace(linked, path)


def clear(path: Path) -> None:
    """Remove what builds of `path` left that were killed. Nobody else may be building it."""
    for left in path.parent.glob(f"{_unfinished(path)}*"):
        shutil.rmtree(left, ignore_errors=True)


def _unfinished(path: Path) -> str:
    """How the names of folders begin in which a file is made."""
    return f".{path.stem}-"


def is_whole(data: bytes) -> bool:
    """True for what a complete file holds: loading half a shared object would kill the process."""
    return len(data) > _DIGEST and hashlib.sha256(data[:-_DIGEST]).digest() == data[-_DIGEST:]


def _compile(library: Library, march: tuple[str, ...], objects: list[str]) -> None:
    """All units at once, each a list of includes on the compiler's standard input."""
    import tensorflow as tf

    common = [*_compiler(), *tf.sysconfig.get_compile_flags(), *march, "-fPIC", "-w", "-x", "c++", "-c", "-"]
    texts = ["".join(f'#include "{ROOT / source}"\n' for source in unit.sources) for unit in library.units]
    with contextlib.ExitStack() as stack:  # ends those that began, where one cannot be started
        running = []
        for unit, target in zip(library.units, objects, strict=True):
            flags = [flag.format(include=tf.sysconfig.get_include()) for flag in unit.flags]
            command, pipe = [*common, *flags, "-o", target], subprocess.PIPE
            started = subprocess.Popen(command, stdin=pipe, stderr=pipe, **_apart())
            running.append(stack.enter_context(started))
            stack.callback(_end, started)
        errors = [process.communicate(text)[1] for process, text in zip(running, texts, strict=True)]
    failed = [error for process, error in zip(running, errors, strict=True) if process.returncode]
    if failed:
        text = f"{shlex.join(_compiler())} could not compile the {library.name} kernels"
        raise _failure(text, "".join(failed))


def _end(process: subprocess.Popen) -> None:
    """Stop a compiler that still runs, as this process was stopped while it waited, and what it has started."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # _apart has made it the first of a group


def _compiler() -> list[str]:
    """The command: g++, or CXX, which may hold arguments."""
    try:
        command = shlex.split(os.environ.get("CXX", "")) or ["g++"]
    except ValueError as error:
        raise BuildError(f"CXX={os.environ['CXX']} cannot be read ({error})", "Mend CXX") from error
    if shutil.which(command[0]) is None:
        raise BuildError(f"there is no C++ compiler ({command[0]} is not found; CXX may name another)")
    return command


def _run(command: list[str]) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, **_apart()).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        output = getattr(error, "stderr", None) or str(error)
        raise _failure(f"{command[0]} failed", output) from error


def _apart() -> dict[str, Any]:
    """How a compiler is started: in English, as _failure looks for two of the C library's messages, and in a session
    of its own, as Ctrl-C would else end it under a training that goes on to its next checkpoint.
    """
    english = {**os.environ, "LC_ALL": "C"}
    return {"encoding": "utf-8", "errors": "replace", "env": english, "start_new_session": True}


def _failure(text: str, output: str) -> BuildError:
    """output: what the compiler said; empty where it was killed."""
    if "No space left on device" in output or "Disk quota exceeded" in output:
        repair = (
            "Free some space there and in the folder of temporary files, or set BLOCKSPARSE_CACHE and TMPDIR"
        )
        return BuildError(f"the disk is full: {text}:\n{output[-2000:]}", repair)
    said = output[-2000:].rstrip().removesuffix(".")
    if not said or "signal terminated program" in said:
        repair = (
            "Let the compiler finish: something stopped it, a limit of memory or of a file's size perhaps"
        )
        return BuildError(f"{text}:\n{said or 'it ended without a word'}", repair)
    return BuildError(f"{text}:\n{said}")
