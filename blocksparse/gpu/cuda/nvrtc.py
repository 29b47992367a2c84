"""Compiles the CUDA sources with NVRTC 12, from the wheel nvidia-cuda-nvrtc-cu12: no toolkit, no GPU is needed.

NVRTC 13 no longer knows compute capability 7.0.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path

LIBRARY = "libnvrtc.so.12"


class NvrtcError(RuntimeError):
    """The compiler's own words."""


def path() -> str | None:
    """Where NVRTC 12 is: in the wheel, else wherever the loader finds it (CUDA's own folders); None where it is not."""
    try:
        found = importlib.util.find_spec("nvidia.cuda_nvrtc")
    except ModuleNotFoundError:
        found = None
    for folder in found.submodule_search_locations or () if found else ():
        library = Path(folder) / "lib" / LIBRARY
        if library.exists():
            return str(library)
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        return None
    return LIBRARY


def compile(source: Path, macros: dict[str, int], target: str) -> bytes:
    """Machine code (target "sm_70") or PTX ("compute_70") of a source file. Raises NvrtcError with its log."""
    nvrtc = _library()
    options = [f"--gpu-architecture={target}", f"--include-path={source.parent}", "--std=c++17"]
    options += [f"-D{name}={value}" for name, value in macros.items()]
    program = ctypes.c_void_p()
    text = source.read_bytes()
    _check(nvrtc, nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, source.name.encode(), 0, None, None))
    try:
        words = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        if nvrtc.nvrtcCompileProgram(program, len(options), words):
            log = _output(nvrtc, program, nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog)
            raise NvrtcError(log.rstrip(b"\0").decode(errors="replace"))
        if target.startswith("sm_"):
            return _output(nvrtc, program, nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN)
        return _output(nvrtc, program, nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


@functools.cache
def _library() -> ctypes.CDLL:
    found = path()
    if found is None:
        raise NvrtcError(f"{LIBRARY} is not installed: pip install 'nvidia-cuda-nvrtc-cu12>=12,<13'")
    return ctypes.CDLL(found)


def _output(nvrtc: ctypes.CDLL, program: ctypes.c_void_p, size: Callable, content: Callable) -> bytes:
    length = ctypes.c_size_t()
    _check(nvrtc, size(program, ctypes.byref(length)))
    buffer = ctypes.create_string_buffer(length.value)
    _check(nvrtc, content(program, buffer))
    return buffer.raw


def _check(nvrtc: ctypes.CDLL, status: int) -> None:
    if status:
        nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
        raise NvrtcError(nvrtc.nvrtcGetErrorString(status).decode())
