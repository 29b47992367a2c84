"""Sparse Transformer attention for TensorFlow, on the `blocksparse` engine.

Names load on first use: importing this package alone does not import TensorFlow.
"""

from importlib import import_module

_MODULES = {
    "attention": (
        "attention_impl",
        "blocksparse_attention_impl",
        "get_attn_mask",
        "get_blocksparse_obj",
        "get_callback",
        "strided_transpose",
    ),
    "recompute": ("recomputable",),
    "utils": ("merge_heads", "merge_states", "shape_list", "split_heads", "split_states"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}
__version__ = "1.1.0"
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__():
    return __all__
