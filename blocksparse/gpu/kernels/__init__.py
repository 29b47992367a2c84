"""The Triton kernels, for processes without TensorFlow. All but roles/ also run in Triton's interpreter."""

from triton.compiler import ASTSource

from .backward import attention_key_gradient, attention_query_gradient
from .closed import attention_closed_forward, attention_whole_gradient
from .forward import attention_forward

__all__ = [
    "attention_closed_forward",
    "attention_forward",
    "attention_key_gradient",
    "attention_query_gradient",
    "attention_whole_gradient",
    "source",
]


def source(launch):
    """What triton.compile takes for a launch of the manifest."""
    compiled = launch.signature, launch.constexprs, launch.attrs
    if launch.function in __all__:
        return ASTSource(globals()[launch.function], *compiled)
    from triton.experimental.gluon import GluonASTSource  # not in every Triton that compiles the others

    from . import roles

    return GluonASTSource(getattr(roles, launch.function), *compiled)
