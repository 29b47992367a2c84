"""The Triton kernels, for processes without TensorFlow. All of it also runs in Triton's interpreter."""

from .backward import attention_key_gradient, attention_query_gradient
from .forward import attention_forward
from .whole import attention_whole_gradient

__all__ = [
    "attention_forward",
    "attention_key_gradient",
    "attention_query_gradient",
    "attention_whole_gradient",
]
