"""Which compiled libraries this process uses: the CPU's ops, the GPU's kernels, XLA's custom calls."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
import threading
import warnings
from types import ModuleType

import tensorflow as tf
from tensorflow.python.ops import control_flow_util

from . import cuda, loading
from .compiler import BuildError
from .folders import cache_folder
from .libraries import CPU, GPU, XLA

_DRIVERS = ("/dev/nvidiactl", "/dev/dxg")  # of NVIDIA GPUs: Linux's own, and WSL's
_TFLITE = "tensorflow.lite.python.lite"  # the converter's module
_loading = threading.Lock()


def load_kernels() -> ModuleType | None:
    """The ops, with kernels for every device of this machine; None where the reference has to run.

    One warning says why it has to. Under jit_compile the first call builds the XLA library (half a minute), so that the
    reference can take its place where that fails; for what was traced outside, _load_for_xla does.
    """
    ops = loading.load_library()
    if ops is None:
        return None
    _serve_xla()
    with _loading:
        return ops if _gpu_or_none_needed() and (not in_xla() or _xla()) else None


def in_xla() -> bool:
    """Whether what is traced here is traced for XLA to compile; false in a graph that only runs under it later."""
    return control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())


def in_tflite_conversion() -> bool:
    """Whether the graph at hand is being built for TensorFlow Lite, which has TensorFlow's own operations alone.

    The converter leaves no mark but its frames among those that led here.
    """
    if tf.executing_eagerly() or _TFLITE not in sys.modules:
        return False
    frame = sys._getframe()
    while frame is not None and frame.f_globals.get("__name__") != _TFLITE:
        frame = frame.f_back
    return frame is not None


def register_ops() -> None:
    """Load, and build once, what this machine's graphs may hold: TensorFlow has to know a SavedModel's ops before it
    reads them. Silent without a compiler: the first attention warns.

    `python -m blocksparse.build` imports this package before it knows what to build. Asking TensorFlow for GPUs would
    start CUDA, and CUDA_VISIBLE_DEVICES may be set later: their driver's device file tells enough.
    """
    if os.environ.get("BLOCKSPARSE_KERNELS") == "reference" or "blocksparse.build" in sys.orig_argv:
        return
    with contextlib.suppress(BuildError):
        _serve_xla()
        if any(map(os.path.exists, _DRIVERS)):
            gpu_library()


@functools.cache
def gpu_library() -> loading.Loaded:
    """The GPU library, told where its kernels are. Raises BuildError."""
    gpu = loading.load(GPU)
    cuda.configure(gpu.functions, cache_folder())
    return gpu


@functools.cache
def xla_library() -> loading.Loaded:
    """The XLA library, pointed at the loaded CPU and GPU libraries. Raises BuildError."""
    xla = loading.load(XLA)
    cpu = loading.load(CPU).functions.blocksparse_call_cpu
    gpu = gpu_library().functions.blocksparse_call_gpu if cuda.capabilities() else None
    xla.functions.blocksparse_xla_bind(ctypes.cast(cpu, ctypes.c_void_p), ctypes.cast(gpu, ctypes.c_void_p))
    return xla


@functools.cache
def _serve_xla() -> None:
    """Load the ops and tell them how XLA's kernels come, which graphs traced earlier may want at any time."""
    loading.load(CPU).functions.blocksparse_xla_on_demand(_load_for_xla)


@ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(ctypes.c_char), ctypes.c_int64)
def _load_for_xla(error, size: int) -> int | None:
    """on_demand.h's LoadXla, called by whichever thread of TensorFlow compiles."""
    try:
        return ctypes.cast(xla_library().functions.blocksparse_xla_kernel, ctypes.c_void_p).value
    except BuildError as reason:
        text = str(reason).encode()[: size - 1] + b"\0"
        ctypes.memmove(error, text, len(text))
        return None


@functools.cache
def _gpu_or_none_needed() -> bool:
    """Whether graphs may hold the op on this machine: TensorFlow may place it on any device that it sees."""
    if not cuda.capabilities():
        return True
    try:
        return _accept(cuda.reason_for_reference(cache_folder()) or _failure(gpu_library))
    except BuildError as error:
        return _accept(f"{error}. {error.repair}")


@functools.cache
def _xla() -> bool:
    return _accept(_failure(xla_library))


@functools.cache
def compiles_for_gpu() -> bool:
    """Whether a function that XLA compiles for this machine's GPU holds the kernels."""
    return bool(cuda.capabilities()) and load_kernels() is not None and _failure(xla_library) is None


@functools.cache
def warn_of_reference(reason: str) -> None:
    """Say, once, why attention runs on the reference."""
    text = f"blocksparse runs in plain TensorFlow, slower and with more memory: {reason}"
    warnings.warn(text, RuntimeWarning, stacklevel=5)


def _failure(load) -> str | None:
    try:
        load()
    except BuildError as error:
        return f"{error}. {error.repair}"
    return None


def _accept(reason: str | None) -> bool:
    if reason is not None:
        warn_of_reference(reason)
    return reason is None
