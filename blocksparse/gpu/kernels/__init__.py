"""The Triton kernels, for processes without TensorFlow. All of it also runs in Triton's interpreter."""

from .backward import attention_key_gradient, attention_query_gradient
from .closed import attention_closed_forward, attention_whole_gradient
from .forward import attention_forward

__all__ = [
    "attention_closed_forward",
    "attention_forward",
    "attention_key_gradient",
    "attention_query_gradient",
    "attention_whole_gradient",
]
