"""Block-sparse attention for TensorFlow: OpenAI's blocksparse interface, on any CPU and GPU."""

from importlib.util import find_spec

if find_spec("tensorflow"):  # without it, blocksparse.plan still work
    from . import nccl
    from .embed import embedding_lookup
    from .ewops import (
        add,
        add_n,
        bias_relu,
        dropout,
        fast_gelu,
        filter_tensor,
        float_cast,
        gelu,
        multiply,
        relu,
        scale_tensor,
        swish,
    )
    from .grads import gradients, recomputable
    from .native.devices import register_ops
    from .nccl import allreduce, group_allreduce, serialize_allreduce_ops, sync_variables_op
    from .norms import layer_norm
    from .optimize import AdafactorOptimizer, AdamOptimizer, Ema, clip_by_global_norm, global_norm
    from .plan.patterns import Pattern
    from .quantize import log_stats
    from .transformer import (
        BlocksparseTransformer,
        clear_bst_constants,
        from_mask,
        masked_softmax,
        masked_top_k_softmax,
        rectified_top_k,
        softmax,
        softmax_cross_entropy,
        top_k,
        transpose_0213,
        transpose_2d,
    )
    from .utils import get_entropy, set_entropy

    register_ops()

    __all__ = [
        "AdafactorOptimizer",
        "AdamOptimizer",
        "BlocksparseTransformer",
        "Ema",
        "Pattern",
        "add",
        "add_n",
        "allreduce",
        "bias_relu",
        "clear_bst_constants",
        "clip_by_global_norm",
        "dropout",
        "embedding_lookup",
        "fast_gelu",
        "filter_tensor",
        "float_cast",
        "from_mask",
        "gelu",
        "get_entropy",
        "global_norm",
        "gradients",
        "group_allreduce",
        "layer_norm",
        "log_stats",
        "masked_softmax",
        "masked_top_k_softmax",
        "multiply",
        "nccl",
        "recomputable",
        "rectified_top_k",
        "relu",
        "scale_tensor",
        "serialize_allreduce_ops",
        "set_entropy",
        "softmax",
        "softmax_cross_entropy",
        "swish",
        "sync_variables_op",
        "top_k",
        "transpose_0213",
        "transpose_2d",
    ]
