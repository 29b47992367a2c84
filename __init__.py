"""Sparse Transformer attention for TensorFlow, on the `blocksparse` engine.

Names load on first use: importing this package alone does not import TensorFlow.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the same names as below, where type checkers and editors see them
    from blocksparse import Pattern as Pattern
    from blocksparse import from_mask as from_mask

    from .attention import attention_impl as attention_impl
    from .attention import blocksparse_attention_impl as blocksparse_attention_impl
    from .attention import get_attn_mask as get_attn_mask
    from .attention import get_blocksparse_obj as get_blocksparse_obj
    from .attention import get_callback as get_callback
    from .attention import strided_transpose as strided_transpose
    from .decode import DecodeStep as DecodeStep
    from .layers import SparseSelfAttention as SparseSelfAttention
    from .layers import SparseTransformerBlock as SparseTransformerBlock
    from .recompute import recomputable as recomputable
    from .utils import merge_heads as merge_heads
    from .utils import merge_states as merge_states
    from .utils import shape_list as shape_list
    from .utils import split_heads as split_heads
    from .utils import split_states as split_states

_MODULES = {
    ".attention": (
        "attention_impl",
        "blocksparse_attention_impl",
        "get_attn_mask",
        "get_blocksparse_obj",
        "get_callback",
        "strided_transpose",
    ),
    ".decode": ("DecodeStep",),
    ".layers": ("SparseSelfAttention", "SparseTransformerBlock"),
    ".recompute": ("recomputable",),
    ".utils": ("merge_heads", "merge_states", "shape_list", "split_heads", "split_states"),
    "blocksparse": ("Pattern", "from_mask"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}
__version__ = "1.1.0"
__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name], __name__), name)


def __dir__():
    return __all__
