"""The Sparse Transformer (Child et al. 2019, arXiv 1904.10509), sections 5.1 to 5.5, as a Keras model."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from itertools import islice

import keras
import tensorflow as tf

from sparse_attention.decode import DecodeStep
from sparse_attention.layers import SparseTransformerBlock, alike
from sparse_attention.layers.dropout import dropout_keys
from sparse_attention.layers.transformer_block import first_row

from . import loss
from .config import Config

VOCABULARY = 256  # bytes


def variance(scale: float) -> keras.initializers.Initializer:
    """N(0, scale / fan_in), scale / fan_in being the variance.

    The paper prints N(0, 0.125 / sqrt(d_in)); read as a standard deviation that is 2.8 times smaller than what the
    authors' later code draws, variance 0.125 / d_in. The code's reading is taken.
    """
    return keras.initializers.VarianceScaling(scale, mode="fan_in", distribution="untruncated_normal")


def deviation(stddev: float) -> keras.initializers.Initializer:
    return keras.initializers.RandomNormal(stddev=stddev)


class Embedding(keras.layers.Layer):
    """Tokens -> the first residual stream (section 5.3, equation 15), shifted: slot i holds token i-1.

    Positions are a grid, one learned table for each of its dimensions. Slot 0 holds a learned start vector; the paper
    is silent on both shift and start token, and this is how the authors' later code does it: slot i carries token i-1
    with the position of token i-1.
    """

    def __init__(self, grid, width: int, **kwargs):
        super().__init__(**kwargs)
        self.grid = tuple(grid)
        self.width = width

    def build(self, _):
        std = (
            0.125 / self.width**0.5
        )  # here the paper's formula is read as printed, which agrees with the code
        shape = (VOCABULARY, self.width)
        self.token = self.add_weight(name="token", shape=shape, initializer=deviation(std))
        self.start = self.add_weight(name="start", shape=(self.width,), initializer=deviation(std))
        std /= len(self.grid) ** 0.5
        self.position = [
            self.add_weight(name=f"position_{axis}", shape=(size, self.width), initializer=deviation(std))
            for axis, size in enumerate(self.grid)
        ]

    def positions(self):
        """[n_ctx, width]: the outer sum of the tables. A broadcast, so that its gradient is a plain sum."""
        total = 0.0
        for axis, table in enumerate(self.position):
            shape = [1] * len(self.grid) + [self.width]
            shape[axis] = self.grid[axis]
            total += tf.reshape(tf.cast(table, self.compute_dtype), shape)
        return tf.reshape(total, [-1, self.width])

    def call(self, tokens):
        # One-hot as in equation 15: a product's gradient is the same bits every run on a GPU, a gather's is not.
        one_hot = tf.one_hot(tokens, VOCABULARY, dtype=self.compute_dtype)
        x = tf.matmul(one_hot, tf.cast(self.token, self.compute_dtype)) + self.positions()
        start = tf.cast(self.start, self.compute_dtype)
        start = tf.broadcast_to(start, [tf.shape(x)[0], 1, self.width])
        return tf.concat([start, x[:, :-1]], axis=1)

    def step(self, token, position):
        """Slot `position`, a scalar or [batch], whose previous token is `token` [batch]: [batch, width]."""
        position = tf.reshape(position, [-1])
        x = tf.gather(self.token, token) + self.place(position)
        return tf.cast(tf.where(position[:, None] > 0, x, self.start), self.compute_dtype)

    def place(self, position):
        """What slots `position` [n], from 1 on, hold beside their previous tokens: float32 [n, width]."""
        total, place = 0.0, tf.maximum(position - 1, 0)
        for size, table in zip(reversed(self.grid), reversed(self.position), strict=True):
            total += tf.gather(table, place % size)
            place //= size
        return total


class ResidualBlock(SparseTransformerBlock):
    """H + a(H) + b(H), pre-activation (equations 9 to 14), as a configuration has it."""

    def __init__(self, config: Config, index: int, **kwargs):
        super().__init__(
            attn_mode=config.layer_modes[index % len(config.layer_modes)],
            key_width=int(config.width * config.key_ratio),
            blocksparse=config.blocksparse,
            kv_heads=config.kv_heads,
            kernel_initializer=variance(0.125),
            output_initializer=variance(0.125 / (2 * config.layers)),  # both outputs scaled by 1 / sqrt(2N)
            ff_ratio=config.ff_ratio,
            dropout=config.dropout,
            recompute=config.recompute,
            autocast=False,  # weights arrive as float32, or as half of them in one cast
            **config.pattern,
            **kwargs,
        )
        self.config, self.index = config, index

    def keys(self, step, batch):
        """What decides the dropout of training step `step`, the same on any number of replicas."""
        if step is None or not self.dropout:
            return None
        arguments = batch, first_row(batch)
        return tf.stack(
            [dropout_keys(self.config.seed, step, 2 * self.index + branch, *arguments) for branch in (0, 1)]
        )


@keras.saving.register_keras_serializable(package="sparse_transformer")
class SparseTransformer(keras.Model):
    """Bytes [batch, n_ctx] -> float32 logits [batch, n_ctx, 256] of each byte, given those before it.

    shared: blocks of the same mode share one tf.function, as 128 of them would take minutes to trace otherwise, and
    config.xla holds. Not for `fit` with jit_compile, in which TensorFlow 2.21 waits for ever for such a function.
    """

    def __init__(self, config: Config, shared: bool = False, **kwargs):
        super().__init__(
            **{"name": "sparse_transformer", "dtype": config.precision, "autocast": False, **kwargs}
        )
        self.config = config
        self.shared = shared
        self.embedding = Embedding(config.grid, config.width, name="embedding", dtype=self.dtype_policy)
        self.blocks = [
            ResidualBlock(config, index, name=f"block{index}", dtype=self.dtype_policy)
            for index in range(config.layers)
        ]
        self.norm = keras.layers.LayerNormalization(epsilon=1e-6, name="norm", dtype=self.dtype_policy)
        # Zero, so that training starts at exactly 8 bits.
        self.logits = keras.layers.Dense(
            VOCABULARY, use_bias=False, kernel_initializer="zeros", name="logits", dtype=self.dtype_policy
        )
        # Compiled, or the gradient of the positions, a sum over batch rows, takes as long as a block's.
        compiled = partial(tf.function, autograph=False, jit_compile=True)
        self.embed = compiled(self._embed) if shared and config.xla else self._embed
        self.loss_of = loss.Loss(self.norm.epsilon, config.xla)
        self.build((None, config.padded))

    def build(self, shape):
        self.embedding.build(shape)
        for layer in (*self.blocks, self.norm, self.logits):
            layer.build((*shape, self.config.width))
        self.built = True

    def get_config(self):
        return {"config": asdict(self.config), "shared": self.shared, "name": self.name}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "config": Config.from_fields(config["config"])})

    def call(self, tokens, training=False, step=None, values=None):
        """`step` decides the dropout masks; under `fit` it is the optimizer's.

        values: for those of trainable_variables, in their order; matrices may be of the compute dtype.
        """
        if training and step is None:
            step = self.optimizer.iterations.value
        x = self._stream(iter(values or ()), tokens, step if training else None)
        return tf.cast(self.logits(self.norm(x[:, : self.config.n_ctx])), tf.float32)

    def nats(self, tokens, step, values):
        """The mean of -ln p of all tokens in training step `step`, for these values of trainable_variables."""
        rest = iter(values)
        x = self._stream(rest, tokens, step)
        return self.loss_of(loss.Weights(*_next(rest, self.norm), *_next(rest, self.logits)), x, tokens)

    def _stream(self, rest, tokens, step):
        """The residual stream behind the last block; takes the values that it needs of rest."""
        x = self.pad(self.embed(_next(rest, self.embedding), tokens))
        for block in self.blocks:
            passes = alike.shared(block.kind, compiled=self.config.xla) if self.shared else None
            x = block.run(_next(rest, block), x, block.keys(step, tf.shape(tokens)[0]), passes=passes)
        return x

    def pad(self, x):
        """[batch, n_ctx, width] with zeros behind: the config.padded positions of the residual stream."""
        more = self.config.padded - self.config.n_ctx
        return tf.pad(x, [[0, 0], [0, more], [0, 0]]) if more else x

    def _embed(self, values, tokens):
        with keras.StatelessScope(zip(self.embedding.weights, values, strict=True)):
            return self.embedding(tokens)

    def check_patterns(self) -> None:
        """Raises ValueError where a mode does not fit the context, before any step is made."""
        x = tf.TensorSpec([1, self.config.padded, self.config.width], self.compute_dtype)
        for block in self.blocks[: len(self.config.layer_modes)]:
            tf.function(block.attention.call, autograph=False).get_concrete_function(x)

    def decoders(self, batch: int) -> list[DecodeStep]:
        """A decoding step for each block, to be made outside tf.function."""
        return [block.attention.decode_step(batch, self.config.padded) for block in self.blocks]


def _next(values, layer) -> list[tf.Tensor]:
    """The next of values, as many as the layer has, or the layer's own where there are none."""
    own = layer.weights
    return list(islice(values, len(own))) or [tf.convert_to_tensor(variable.value) for variable in own]


def bits(logits, tokens):
    """Bits per token [batch, time]: the cross-entropy over ln 2 (section 3)."""
    nats = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=tokens, logits=logits)
    return nats / tf.math.log(2.0)
