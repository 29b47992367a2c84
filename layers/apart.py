"""What stands around the blocks of a Keras model, in training compiled by XLA, each part by itself."""

from __future__ import annotations

import keras
import tensorflow as tf
from tensorflow.python.eager import record

from .self_attention import SparseSelfAttention
from .transformer_block import SparseTransformerBlock

_OTHERS = (SparseTransformerBlock, SparseSelfAttention, keras.Model, keras.layers.InputLayer)


def compile_layers(model: keras.Model) -> keras.Model:
    """The model, of which XLA compiles in training what stands around the blocks: a layer at a time, and the loss.

    For `fit` where Keras does not compile the whole step (`compile(jit_compile=False)`), beside compile_update: there a
    LayerNormalization behind the blocks runs some forty operations one by one over float32 rows. Each part is a program
    and its gradient another. Left as they are: blocks, which compile themselves, attention, models inside the model,
    layers of which Keras says that XLA cannot compile them, what runs outside training, and shapes of which more than
    the batch is not known. Numbers agree to rounding.

    Raises: ValueError where the model has no layers yet.
    """
    layers = [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
    if not layers:
        raise ValueError(f"{model.name} has no layers: build it before compile_layers")
    for layer in layers:
        if layer.supports_jit and not isinstance(layer, _OTHERS):
            layer.call = _compiled(layer.call)
    model.compute_loss = _compiled(model.compute_loss)
    return model


def _compiled(plain):
    if hasattr(plain, "runs"):  # it is already
        return plain

    def call(*args, **kwargs):
        tensors = [x for x in tf.nest.flatten((args, kwargs)) if isinstance(x, tf.Tensor)]
        known = tensors and all(x.shape.rank and x.shape[1:].is_fully_defined() for x in tensors)
        if (
            not known or not tf.inside_function() or not record.could_possibly_record()
        ):  # no tape, no training
            return plain(*args, **kwargs)
        # A function of this graph alone: another graph may be traced after a change of the layer or of the loss.
        return tf.function(plain, jit_compile=True, autograph=False)(*args, **kwargs)

    call.runs = plain
    return call
