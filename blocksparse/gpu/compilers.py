"""Which compilers are here: Triton, and NVRTC for compute capability 7.0 and 7.5. Imports neither Triton nor
TensorFlow.
"""

from __future__ import annotations

import importlib.util

from . import cuda
from .cuda import nvrtc

LEAST = cuda.LEAST  # the least compute capability, times ten, that any kernel is compiled for


def missing(capability: int, triton: bool) -> str | None:
    """What to install to compile kernels for this capability, as a sentence; None where it is there."""
    if cuda.serves(capability):
        if nvrtc.path():
            return None
        return "NVRTC 12 is not installed: pip install 'nvidia-cuda-nvrtc-cu12>=12,<13'"
    return None if triton else "Triton is not installed: pip install 'triton>=3.6,<3.10'"


def has_triton() -> bool:
    """Whether Triton is there. It is never imported to find out: its LLVM and TensorFlow's abort when they meet."""
    return importlib.util.find_spec("triton") is not None
