"""Tells the GPU library where compiled kernels are and how to compile more."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import sys
from pathlib import Path

from .folders import prebuilt_folder

_GPU = Path(__file__).parents[1] / "gpu"
LEAST_CAPABILITY = 80  # Triton has no tensor-core path below


def configure(library: ctypes.CDLL, cache: Path) -> None:
    """Point the loaded GPU library at the folders of kernels; new ones go into the user's `cache`."""
    entry = library.blocksparse_gpu_configure
    entry.argtypes, entry.restype = [ctypes.c_char_p, ctypes.c_char_p], None
    folders, command = kernel_folders(cache), []
    if has_triton():
        command = [sys.executable, _GPU / "compile.py", "--out", folders[-1]]
    entry(_lines(folders), _lines(command))


def reason_for_reference(cache: Path) -> str | None:
    """Why the GPU kernels cannot run here, as a sentence; None where they can, or where there is no GPU.

    A graph may be placed on any of the machine's GPUs, so one that is too old decides for all.
    """
    found = capabilities()
    for number, capability in enumerate(found):
        if capability < LEAST_CAPABILITY:
            return f"GPU:{number} has compute capability {capability / 10}, the kernels need 8.0 or newer"
    if found and not has_triton() and not any(folder.is_dir() for folder in kernel_folders(cache)):
        return "Triton is not installed (pip install 'triton>=3.6,<3.10') and no compiled kernels were found"
    return None


@functools.cache
def capabilities() -> tuple[int, ...]:
    """Ten times the compute capability of each GPU that TensorFlow sees, 90 for an H100."""
    import tensorflow as tf

    details = map(tf.config.experimental.get_device_details, tf.config.get_visible_devices("GPU"))
    return tuple(major * 10 + minor for major, minor in (each["compute_capability"] for each in details))


def kernel_folders(cache: Path) -> list[Path]:
    """Folders that may hold KEY/manifest, in the order they are looked in; the writable one is the last."""
    roots = [prebuilt_folder(), cache]
    return [root / f"kernels-{source_hash()}" for root in roots if root]


def has_triton() -> bool:
    """Whether Triton is there. It is never imported here: its LLVM and TensorFlow's abort when they meet."""
    return importlib.util.find_spec("triton") is not None


@functools.cache
def source_hash() -> str:
    """Names the kernels' sources, so that no version runs the kernels of another."""
    digest = hashlib.sha256()
    for path in sorted([*_GPU.rglob("*.py"), *_GPU.rglob("*.json")]):
        digest.update(path.relative_to(_GPU).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _lines(words: list) -> bytes:
    return "\n".join(map(str, words)).encode()
