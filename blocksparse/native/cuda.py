"""Tells the GPU library where compiled kernels are and how to compile more."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import sys
from pathlib import Path

from ..gpu import compilers
from ..gpu.compilers import has_triton
from .folders import prebuilt_folder, shipped_folder

_GPU = Path(__file__).parents[1] / "gpu"


def configure(library: ctypes.CDLL, cache: Path) -> None:
    """Point the loaded GPU library at the folders of kernels; new ones go into the user's `cache`."""
    entry = library.blocksparse_gpu_configure
    entry.argtypes, entry.restype = [ctypes.c_char_p] * 3, None
    folders, shipped = kernel_folders(cache), shipped_folder()
    command = [sys.executable, _GPU / "compile.py", "--out", folders[-1]]
    command += ["--ptx"] * bool(override()) + ["--no-triton"] * (not has_triton())
    entry(_lines(folders), _lines([_kernels(shipped)] if shipped else []), _lines(command))


def reason_for_reference(cache: Path) -> str | None:
    """Why the GPU kernels cannot run here, as a sentence; None where they can, or where there is no GPU.

    A graph may be placed on any of the machine's GPUs, so one that has no kernels decides for all.
    """
    prebuilt = any(folder.is_dir() for folder in kernel_folders(cache))
    for number, capability in enumerate(capabilities()):
        if capability < compilers.LEAST:
            return f"GPU:{number} has compute capability {capability / 10}, the kernels need 7.0 or newer"
        without = compilers.missing(capability, has_triton())
        if without and not prebuilt:
            return f"{without}; and no compiled kernels were found"
    return None


def override() -> int | None:
    """BLOCKSPARSE_CAPABILITY, 70 or 75: a newer GPU runs that one's kernels, for tests of theirs. Raises ValueError."""
    given = os.environ.get("BLOCKSPARSE_CAPABILITY")
    if given and given not in ("70", "75"):
        raise ValueError(f"BLOCKSPARSE_CAPABILITY={given}: it has to be 70 or 75, or not set")
    return int(given) if given else None


@functools.cache
def capabilities() -> tuple[int, ...]:
    """Ten times the compute capability of each GPU that TensorFlow sees, 90 for an H100, or what it is to pass for."""
    import tensorflow as tf

    details = map(tf.config.experimental.get_device_details, tf.config.get_visible_devices("GPU"))
    found = (major * 10 + minor for major, minor in (each["compute_capability"] for each in details))
    return tuple(min(capability, override() or capability) for capability in found)


def kernel_folders(cache: Path) -> list[Path]:
    """Folders that may hold KEY/manifest, in the order they are looked in; the writable one is the last."""
    return [_kernels(root) for root in (prebuilt_folder(), shipped_folder(), cache) if root]


def _kernels(root: Path) -> Path:
    kind = "-ptx" if override() else ""  # under the same keys
    return root / f"kernels-{source_hash()}{kind}"


@functools.cache
def source_hash() -> str:
    """Names the kernels' sources, so that no version runs the kernels of another."""
    digest = hashlib.sha256()
    sources = [path for suffix in ("py", "json", "cu") for path in _GPU.rglob(f"*.{suffix}")]
    for path in sorted([*sources, *(_GPU / "cuda").glob("*.h")]):
        digest.update(path.relative_to(_GPU).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _lines(words: list) -> bytes:
    return "\n".join(map(str, words)).encode()
