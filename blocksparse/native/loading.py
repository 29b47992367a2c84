"""Loads compiled libraries into this process, each once."""

from __future__ import annotations

import ctypes
import functools
import os
import threading
import warnings
from types import ModuleType
from typing import NamedTuple

from .cache import shared_object
from .compiler import BuildError
from .libraries import CPU, Library

_loading = threading.RLock()


class Loaded(NamedTuple):
    """A library in this process."""

    ops: ModuleType  # what tf.load_op_library gives
    functions: ctypes.CDLL  # its plain C functions


def load(library: Library) -> Loaded:
    """A library of this machine, built if need be. Raises BuildError, later without a second attempt."""
    with _loading:
        found = _load_once(library)
    if isinstance(found, BuildError):
        raise found
    return found


@functools.cache
def _load_once(library: Library) -> Loaded | BuildError:
    import tensorflow as tf

    try:
        path = str(shared_object(library))
        return Loaded(tf.load_op_library(path), ctypes.CDLL(path))
    except BuildError as error:
        return error
    except (tf.errors.OpError, OSError) as error:
        noexec = "failed to map segment" in str(error)
        repair = (
            "Set BLOCKSPARSE_CACHE to a folder on a disk that is mounted without noexec" if noexec else None
        )
        text = f"TensorFlow {tf.__version__} cannot load {path}: {getattr(error, 'message', error)}"
        return BuildError(text, repair or f"Remove {path}")


@functools.cache
def load_library() -> ModuleType | None:
    """The CPU ops; None with BLOCKSPARSE_KERNELS=reference and, after a warning, where they cannot be built.

    Later calls return what the first one did.
    """
    if os.environ.get("BLOCKSPARSE_KERNELS") == "reference":
        return None
    try:
        return load(CPU).ops
    except BuildError as error:
        warnings.warn(
            f"blocksparse runs in plain TensorFlow, several times slower and with more memory: {error}. "
            f"{error.repair}, or set BLOCKSPARSE_KERNELS=reference to choose this and hear no more of it.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
