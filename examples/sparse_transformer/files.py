"""Files that neither a kill, nor a full disk, nor a second writer can spoil."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


def no_folder(out: Path) -> ValueError:
    return ValueError(f"--out {out} is a file, or goes through one; give a folder")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Makes the folder of `path`. An OSError on the way says which file cannot be written, and why."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file beside `path`, which takes its name once all is written: a reader sees the old one or the new, whole."""
    partial = path.with_name(f"{path.name}.partial")
    with writing(path):
        try:
            with partial.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            with suppress(OSError):
                partial.unlink()
            raise


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes the folder, and keeps other trainings out of it until this process ends, however it ends.

    Raises ValueError where another holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise no_folder(folder) from None
    except OSError as error:
        raise OSError(f"--out {folder} cannot be made: {error.strerror}") from error
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW  # a link could point at a file of somebody else
    with os.fdopen(os.open(folder / "lock", flags, 0o644), "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = file.read(200).strip() or "another process"
            raise ValueError(
                f"{folder} is being trained by {owner}; wait for it, stop it, or choose another --out"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} of {socket.gethostname()}\n")
        file.flush()
        yield
