"""The Triton kernels. Imported only in processes without TensorFlow; everything here also runs in Triton's interpreter."""

from .backward import attention_key_gradient, attention_query_gradient
from .forward import attention_forward

__all__ = ["attention_forward", "attention_key_gradient", "attention_query_gradient"]
