"""The model at one position, in as few operations as it takes, and on a prompt that fills the caches."""

from __future__ import annotations

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from sparse_attention.decode import DecodeStep
from sparse_attention.layers.rows import gelu
from sparse_attention.layers.written_out import Map

from .config import Config
from .model import SparseTransformer


class Chunk(NamedTuple):
    """The next `size` tokens of `count` sequences: of which model, with the caches of which decoders, cut how.

    ragged: the sequences are at positions of their own.
    """

    model: SparseTransformer
    count: int
    decoders: list[DecodeStep]
    size: int
    top_k: int | None = None
    top_p: float | None = None
    ragged: bool = False


class Norm(NamedTuple):
    gamma: tf.Tensor
    beta: tf.Tensor
    epsilon: float


class Block(NamedTuple):
    """The weights of one residual block; those of queries, keys and values are one map."""

    norm1: Norm
    qkv: Map
    project: Map
    norm2: Norm
    expand: Map
    contract: Map


class Weights(NamedTuple):
    blocks: list[Block]
    norm: Norm
    logits: Map


def prepare(model: SparseTransformer) -> Weights:
    """The weights as steps take them, joined and cast: to be called once, before the loop over positions.

    Raises ValueError for quantized layers.
    """
    dtype = model.compute_dtype

    def joined(*maps: keras.layers.Dense) -> Map:
        for each in maps:
            if each.quantization_mode:
                raise ValueError(
                    f"{each.name} is quantized ({each.quantization_mode}); steps multiply by the weights as they "
                    "were trained: sample from the model before it is quantized"
                )
        kernel = tf.concat([tf.cast(each.kernel, dtype) for each in maps], axis=1)
        bias = tf.concat([tf.cast(each.bias, dtype) for each in maps], axis=0) if maps[0].use_bias else None
        return Map(kernel, bias)

    def norm(layer: keras.layers.LayerNormalization) -> Norm:
        return Norm(tf.cast(layer.gamma, tf.float32), tf.cast(layer.beta, tf.float32), layer.epsilon)

    def block(layer) -> Block:
        own = layer.attention
        return Block(
            norm(layer.norm1),
            joined(own.query, own.key, own.value),
            joined(own.project),
            norm(layer.norm2),
            joined(layer.expand),
            joined(layer.contract),
        )

    return Weights([block(layer) for layer in model.blocks], norm(model.norm), joined(model.logits))


def step(
    model: SparseTransformer, weights: Weights, decoders: list[DecodeStep], token, position
) -> tf.Tensor:
    """The previous token [batch] at `position`, a scalar or [batch] -> logits [batch, 256], float32."""
    x = model.embedding.step(token, position)
    for block, decode in zip(weights.blocks, decoders, strict=True):
        q, k, v = tf.split(
            block.qkv.of(_normalised(block.norm1, x)),
            decode.widths,
            axis=-1,
        )
        attended = tf.cast(decode(q, k, v, position), x.dtype)
        x += block.project.of(attended)
        x += block.contract.of(gelu(block.expand.of(_normalised(block.norm2, x))))
    return tf.cast(weights.logits.of(_normalised(weights.norm, x)), tf.float32)


def prefill(model: SparseTransformer, decoders: list[DecodeStep], prompt, lengths) -> None:
    """One forward pass over prompt [batch, time], its first `lengths` [] or [batch] tokens given, fills the caches.

    time has to fit the patterns: see `padded`.
    """
    time, whole = prompt.shape[1], model.config.n_ctx
    tokens = tf.pad(prompt[:, :whole], [[0, 0], [0, max(0, whole - time)]])
    x = model.pad(model.embedding(tokens))[:, :time]
    for block, decode in zip(model.blocks, decoders, strict=True):
        x += block.attention.prefill(block.norm1(x), decode, lengths)
        x += block.contract(block.expand(block.norm2(x)))


def padded(config: Config, prompt: np.ndarray) -> np.ndarray:
    """prompt [batch, time] with zeros behind, which nothing before them sees, up to a length that the patterns fit."""
    unit = config.blocksize * (config.local_attn_ctx or 1)
    time = min(-(-max(prompt.shape[1], 1) // unit) * unit, config.padded)
    return np.pad(prompt, [(0, 0), (0, time - prompt.shape[1])])


def _normalised(own: Norm, x):
    """Layer normalisation in float32. Both sums in one pass, of x less its first element: that is of the size of the
    deviations, so the difference of the squares loses no more than rounding."""
    wide = tf.cast(x, tf.float32)
    shifted = wide - wide[:, :1]
    mean = tf.reduce_mean(shifted, axis=-1, keepdims=True)
    variance = tf.maximum(tf.reduce_mean(shifted**2, axis=-1, keepdims=True) - mean**2, 0.0)
    scale = tf.math.rsqrt(variance + own.epsilon)
    return tf.cast((shifted - mean) * scale * own.gamma + own.beta, x.dtype)
