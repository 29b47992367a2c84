"""OpenAI's `blocksparse.transformer`: BlocksparseTransformer and the functions that live beside it.

object.py      the class: attention in one step, and OpenAI's three steps
predicate.py   from_mask: the object of one predicate of (query, key)
steps.py       the three steps in plain TensorFlow
lookup.py      OpenAI's lists and look-up tables of the blocks
oracles.py     the three steps in NumPy, with which OpenAI's package tests its operations
functions.py   softmax, top-k, cross entropy and transposes of ordinary tensors
"""

from ..fused.op import clear_bst_constants
from .functions import (
    masked_softmax,
    masked_top_k_softmax,
    rectified_top_k,
    softmax,
    softmax_cross_entropy,
    top_k,
    transpose_0213,
    transpose_2d,
)
from .object import BlocksparseTransformer
from .predicate import from_mask

__all__ = [
    "BlocksparseTransformer",
    "clear_bst_constants",
    "from_mask",
    "masked_softmax",
    "masked_top_k_softmax",
    "rectified_top_k",
    "softmax",
    "softmax_cross_entropy",
    "top_k",
    "transpose_0213",
    "transpose_2d",
]
