"""Sparse attention as Keras 3 layers, SparseSelfAttention and SparseTransformerBlock; the update of a fit, compiled."""

import keras

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        f"sparse_attention.layers needs Keras on TensorFlow, but Keras runs on {keras.backend.backend()!r}; "
        "set the environment variable KERAS_BACKEND=tensorflow before Keras is imported"
    )

from .self_attention import SparseSelfAttention as SparseSelfAttention
from .transformer_block import SparseTransformerBlock as SparseTransformerBlock
from .updates import compile_update as compile_update
