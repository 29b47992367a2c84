"""The layers around the blocks of a Keras model, in training compiled by XLA, each by itself."""

from __future__ import annotations

import keras
import tensorflow as tf
from tensorflow.python.eager import record

from .self_attention import SparseSelfAttention
from .transformer_block import SparseTransformerBlock

_OTHERS = (SparseTransformerBlock, SparseSelfAttention, keras.Model, keras.layers.InputLayer)


def compile_layers(model: keras.Model) -> keras.Model:
    """The model, of which XLA compiles in training what stands around the blocks: a layer and its gradient at a time.

    For `fit` where Keras does not compile the whole step (`compile(jit_compile=False)`), beside compile_update: there a
    LayerNormalization behind the blocks runs some forty operations one by one over float32 rows. Left as they are: blocks,
    which compile themselves, attention, models inside the model, layers of which Keras says that XLA cannot compile them,
    calls outside training or on a shape that is not known but for the batch. Numbers agree to rounding.

    Raises: ValueError where the model has no layers yet.
    """
    layers = [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
    if not layers:
        raise ValueError(f"{model.name} has no layers: build it before compile_layers")
    for layer in layers:
        if layer.supports_jit and not isinstance(layer, _OTHERS) and not hasattr(layer.call, "compiles"):
            layer.call = _compiled(layer.call)
    return model


def _compiled(plain):
    program = tf.function(plain, jit_compile=True, autograph=False)

    def call(*args, **kwargs):
        tensors = [x for x in tf.nest.flatten((args, kwargs)) if isinstance(x, tf.Tensor)]
        known = tensors and all(x.shape.rank and x.shape[1:].is_fully_defined() for x in tensors)
        trains = tf.inside_function() and record.could_possibly_record()  # a tape looks on
        return (program if known and trains else plain)(*args, **kwargs)

    call.compiles = plain
    return call
