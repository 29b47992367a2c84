"""Where built files lie, and whose are trusted: what lies there is loaded as code.

BLOCKSPARSE_PREBUILT names a folder looked in first, BLOCKSPARSE_CACHE the folder of the cache. Between them comes the
package's own folder, which wheels with built files have.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import stat
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from .compiler import BuildError

_OTHERS = stat.S_IWGRP | stat.S_IWOTH
SHIPPED = Path(__file__).parents[1] / "prebuilt"  # filled by .ci/wheels.py


def cache_folder() -> Path:
    """The folder of built files: BLOCKSPARSE_CACHE, else blocksparse under XDG_CACHE_HOME or ~/.cache.

    Only this user may write there; where that cannot be had (no home, a folder of somebody else's), files live in a
    folder that is removed when the process ends. Raises BuildError where there is no such folder either.
    """
    folder = _private_folder()
    return folder if isinstance(folder, Path) else _process_folder()


def warn_of_a_passing_folder() -> None:
    """Warn, once, where what is about to be built is lost when the process ends."""
    reason = _private_folder()
    if isinstance(reason, str):
        _warn_once(
            f"blocksparse compiles into a folder that is removed when this process ends: {reason}. Set "
            "BLOCKSPARSE_CACHE to a folder that only you can write, and later runs find it there."
        )


def prebuilt_folder() -> Path | None:
    """The folder that BLOCKSPARSE_PREBUILT names; None, after a warning, where others may write in it."""
    named = os.environ.get("BLOCKSPARSE_PREBUILT")
    if not named:
        return None
    folder = _absolute(named)
    if open_folder := _open_to_others(folder):
        _warn_once(
            f"BLOCKSPARSE_PREBUILT={named} is not used: others may write in {open_folder}, and what lies there is "
            f"loaded as code. chmod go-w {open_folder}, or name another folder."
        )
        return None
    return folder


def shipped_folder() -> Path | None:
    """The package's own built files; None where it has none. Trusted whatever their owner and mode, as the package's
    Python files are, which lie beside them.
    """
    return SHIPPED if SHIPPED.is_dir() else None


def read_trusted(path: Path, owners: set[int]) -> bytes | None:
    """What a plain file holds that belongs to one of `owners`; None if it is none, a link, or others may write it."""
    try:
        # O_NONBLOCK: a pipe in its place would be waited for.
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if stat.S_ISREG(status.st_mode) and status.st_uid in owners and not status.st_mode & _OTHERS:
                return file.read()
    except OSError:
        pass
    return None


def owners_of(folder: Path) -> set[int]:
    """Whose files count in a folder that the user named: its owner's, root's and the user's own."""
    with contextlib.suppress(OSError):
        return {os.geteuid(), 0, folder.stat().st_uid}
    return set()


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold a lock that the kernel lets go when this process ends, however it ends."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        file = os.open(path, flags, 0o600)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        path.unlink()  # a link: opened, it would lead to somebody's file
        file = os.open(path, flags, 0o600)
    try:
        with contextlib.suppress(
            OSError
        ):  # a file system without locks: two processes may build the same twice
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def failure(error: OSError, folder: Path) -> BuildError:
    """What an error of the operating system while building into `folder` means for the user."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        text = (
            f"the disk is full, or has no room for another file, where {error.filename or folder} should go"
        )
        return BuildError(text, "Free some space, or set BLOCKSPARSE_CACHE to a folder on another disk")
    return BuildError(
        f"{error} (building into {folder})", "Set BLOCKSPARSE_CACHE to a folder that you can write"
    )


def _absolute(named: str) -> Path:
    """No shell has replaced a ~ that comes from a file of settings."""
    return Path(os.path.expanduser(named)).absolute()


def _private_folder() -> Path | str:
    """The cache, or why there is none."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(home):  # the XDG specification says to ignore a relative one
        home = os.path.expanduser("~/.cache")
    named = os.environ.get("BLOCKSPARSE_CACHE")
    if not named and not os.path.isabs(home):
        return f"there is no home directory ({home} is not an absolute path)"
    folder = _absolute(named) if named else Path(home) / "blocksparse"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            return f"{folder} is a link or another user's"
        if status.st_mode & _OTHERS:
            folder.chmod(0o700)  # what others left there is not theirs to have loaded: read_trusted
    except OSError as error:
        return f"{folder} cannot be used ({error.strerror})"
    return folder if os.access(folder, os.W_OK | os.X_OK) else f"{folder} cannot be written"


def _open_to_others(folder: Path) -> Path | None:
    """The folder, or the one above it, in which others may replace what lies there."""
    with contextlib.suppress(OSError):
        folder = folder.resolve()
        if folder.stat().st_mode & _OTHERS:
            return folder
        for above in folder.parents:
            mode = above.stat().st_mode
            if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
                return above
    return None


def _process_folder() -> Path:
    try:
        return Path(_temporary().name)
    except OSError as error:
        raise BuildError(
            f"no folder can be written, not even a temporary one ({error})",
            "Set BLOCKSPARSE_CACHE to a folder that you can write",
        ) from error


@functools.cache
def _temporary() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="blocksparse-")  # removed when the interpreter ends


@functools.cache
def _warn_once(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=4)
