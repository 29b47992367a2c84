"""The Triton kernels, for processes without TensorFlow. All but roles/ also run in Triton's interpreter."""

import re

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .arguments import grouped, source_parts
from .backward import attention_key_gradient, attention_query_gradient
from .closed import attention_closed_forward, attention_whole_gradient
from .forward import attention_forward

__all__ = [
    "attention_closed_forward",
    "attention_forward",
    "attention_key_gradient",
    "attention_query_gradient",
    "attention_whole_gradient",
    "compiled",
    "grouped",
    "warps",
]


def compiled(launch, capability: int):
    """A launch of the manifest, as Triton compiles it for a GPU of this capability."""
    return triton.compile(_source(launch), target=GPUTarget("cuda", capability, 32), options=launch.options)


def warps(kernel) -> int:
    """Of a program of a compiled kernel, those with roles of their own included."""
    return int(re.search(r"\.reqntid\s+(\d+)", kernel.asm["ptx"]).group(1)) // 32


def _source(launch):
    if launch.function in __all__:
        function = globals()[launch.function]
        return ASTSource(function, *source_parts(function.arg_names, launch))
    from triton.experimental.gluon import GluonASTSource  # not in every Triton that compiles the others

    from . import roles

    function = getattr(roles, launch.function)
    return GluonASTSource(function, *source_parts(function.arg_names, launch))
