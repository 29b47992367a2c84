"""Which compiled libraries this process uses: the CPU's ops, the GPU's kernels, XLA's custom calls."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
import warnings
from types import ModuleType

import tensorflow as tf
from tensorflow.python.ops import control_flow_util

from . import native
from .gpu import runtime

_loading = threading.Lock()


def load_kernels() -> ModuleType | None:
    """The ops, with kernels for every device of this machine; None where the reference has to run.

    One warning says why it has to. Under jit_compile the first call builds the XLA library: half a minute.
    """
    ops = native.load_library()
    if ops is None:
        return None
    in_xla = control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())
    with _loading:
        return ops if _gpu_or_none_needed() and (not in_xla or _xla()) else None


def load_built() -> None:
    """Load what is built already, silently: a SavedModel holds ops that TensorFlow has to know before it reads them."""
    with contextlib.suppress(native.BuildError):
        if os.environ.get("BLOCKSPARSE_KERNELS") != "reference" and native.built_path(native.CPU):
            native.load_library()
            if native.built_path(native.GPU):
                gpu_library()


@functools.cache
def gpu_library() -> tuple[ModuleType, ctypes.CDLL]:
    """The GPU library: its ops, and its plain C functions. Raises native.BuildError."""
    ops, functions = native.load(native.GPU), ctypes.CDLL(str(native.library_path(native.GPU)))
    runtime.configure(functions, native.cache_folder())
    return ops, functions


@functools.cache
def xla_library() -> ctypes.CDLL:
    """The XLA library, pointed at the loaded CPU and GPU libraries. Raises native.BuildError."""
    native.load(native.XLA)
    functions = ctypes.CDLL(str(native.library_path(native.XLA)))
    cpu = ctypes.CDLL(str(native.library_path(native.CPU))).blocksparse_call_cpu
    gpu = gpu_library()[1].blocksparse_call_gpu if runtime.capabilities() else None
    functions.blocksparse_xla_bind(ctypes.cast(cpu, ctypes.c_void_p), ctypes.cast(gpu, ctypes.c_void_p))
    return functions


@functools.cache
def _gpu_or_none_needed() -> bool:
    """Whether graphs may hold the op on this machine: TensorFlow may place it on any device that it sees."""
    reason = runtime.reason_for_reference(native.cache_folder())
    if reason is None and runtime.capabilities():
        reason = _failure(gpu_library)
    return _accept(reason)


@functools.cache
def _xla() -> bool:
    return _accept(_failure(xla_library))


def _failure(load) -> str | None:
    try:
        load()
    except native.BuildError as error:
        return str(error)
    return None


def _accept(reason: str | None) -> bool:
    if reason is not None:
        text = f"blocksparse runs in plain TensorFlow, slower and with more memory: {reason}"
        warnings.warn(text, RuntimeWarning, stacklevel=4)
    return reason is None
