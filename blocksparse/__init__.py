"""Block-sparse attention for TensorFlow: OpenAI's blocksparse interface, on any CPU and GPU."""

from importlib.util import find_spec

if find_spec("tensorflow"):  # without it, blocksparse.layout and blocksparse.plan still work
    from .transformer import BlocksparseTransformer, clear_bst_constants

    __all__ = ["BlocksparseTransformer", "clear_bst_constants"]
