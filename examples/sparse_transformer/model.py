"""The Sparse Transformer (Child et al. 2019, arXiv 1904.10509), sections 5.1 to 5.5, as a Keras model."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial

import keras
import tensorflow as tf

from sparse_attention.decode import DecodeStep
from sparse_attention.layers import SparseSelfAttention
from sparse_attention.recompute import recomputable

from .config import Config

VOCABULARY = 256  # bytes
PHILOX = 1


def gelu(x):
    """f(x) = x sigmoid(1.702 x) (section 5.2)."""
    return x * tf.sigmoid(1.702 * x)


def variance(scale: float) -> keras.initializers.Initializer:
    """N(0, scale / fan_in), scale / fan_in being the variance.

    The paper prints N(0, 0.125 / sqrt(d_in)); read as a standard deviation that is 2.8 times smaller than what the
    authors' later code draws, variance 0.125 / d_in. The code's reading is taken.
    """
    return keras.initializers.VarianceScaling(scale, mode="fan_in", distribution="untruncated_normal")


def deviation(stddev: float) -> keras.initializers.Initializer:
    return keras.initializers.RandomNormal(stddev=stddev)


def dropout(x, rate: float, seed: int, step, branch: int, first_row=0):
    """x / (1 - rate) with probability 1 - rate, else 0: decided by (seed, step, branch, row, place) and nothing else.

    Philox is a counter: row r of the global batch takes draws r * size / 8 onwards, so the mask does not depend on how
    many replicas share the batch, and a recomputation draws it again. Keras's Dropout would draw another one.
    """
    if not rate:
        return x
    _, time, width = x.shape  # [batch, time, width]
    key = tf.cast(step, tf.uint64) * 2**16 + tf.cast(branch, tf.uint64)
    start = tf.cast(first_row, tf.uint64) * (time * width // 8)  # a count gives eight numbers of 16 bits
    pairs = tf.raw_ops.StatelessRandomUniformFullIntV2(
        shape=[tf.shape(x)[0], time, width // 2],
        key=key[None],
        counter=tf.stack([start, tf.cast(seed, tf.uint64)]),
        alg=PHILOX,
        dtype=tf.uint32,
    )
    numbers = tf.reshape(tf.bitcast(pairs, tf.uint16), tf.shape(x))
    kept = numbers < tf.constant(round((1 - rate) * 2**16), tf.uint16)
    return tf.where(kept, x / (1 - rate), tf.zeros_like(x))


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
        x = tf.gather(self.token, token)
        position = tf.reshape(position, [-1])
        place = tf.maximum(position - 1, 0)
        for size, table in zip(reversed(self.grid), reversed(self.position), strict=True):
            x += tf.gather(table, place % size)
            place //= size
        return tf.cast(tf.where(position[:, None] > 0, x, self.start), self.compute_dtype)


class ResidualBlock(keras.layers.Layer):
    """H + a(H) + b(H), pre-activation (equations 9 to 14), both branches recomputed in the backward pass."""

    def __init__(self, config: Config, index: int, **kwargs):
        # The layers inside cast, so that weights arrive as float32.
        super().__init__(autocast=False, **kwargs)
        self.config = config
        self.index = index
        graph = partial(tf.function, autograph=False, jit_compile=config.xla or None)
        self.forward, self.traced, self.backward = map(graph, (self.branches, self.block, self.gradients))
        width, branches = config.width, 2 * config.layers
        dtype = self.dtype_policy
        self.norm1 = keras.layers.LayerNormalization(epsilon=1e-5, name="norm1", dtype=dtype)
        self.attention = SparseSelfAttention(
            attn_mode=config.layer_modes[index % len(config.layer_modes)],
            key_width=int(width * config.key_ratio),
            blocksparse=config.blocksparse,
            kernel_initializer=variance(0.125),
            output_initializer=variance(0.125 / branches),  # both outputs scaled by 1 / sqrt(2N)
            name="attention",
            dtype=dtype,
            **config.pattern,
        )
        self.norm2 = keras.layers.LayerNormalization(epsilon=1e-5, name="norm2", dtype=dtype)
        self.expand = keras.layers.Dense(
            int(width * config.ff_ratio),
            activation=gelu,
            kernel_initializer=variance(0.125),
            name="expand",
            dtype=dtype,
        )
        self.contract = keras.layers.Dense(
            width, kernel_initializer=variance(0.125 / branches), name="contract", dtype=dtype
        )

    def build(self, shape):
        for layer in (self.norm1, self.attention, self.norm2, self.expand):
            layer.build(shape)
        self.contract.build((*shape[:-1], self.expand.units))

    def values(self) -> list[tf.Tensor]:
        return [tf.convert_to_tensor(variable.value) for variable in self.trainable_variables]

    def block(self, values, x, index, step, first_row):
        """This block with the weights `values`, as layer number `index`."""
        return self.branches(values, x, index, step, first_row, recompute=self.config.recompute)

    def shared(self, values, x, index, step, first_row):
        """The same, traced once for all layers of this mode, and compiled where the configuration says so."""
        arguments = index, step, first_row
        if not (self.config.xla and self.config.recompute):
            return self.traced(values, x, *arguments)

        @tf.custom_gradient
        def compiled(x, *values):
            return self.forward(values, x, *arguments), lambda dy: self.backward(dy, values, x, *arguments)

        # TensorFlow lets a compiled function hand its gradient a copy of each argument; two functions need none.
        return compiled(x, *values)

    def gradients(self, dy, values, x, index, step, first_row):
        """dx and those of the values, from nothing but what went in."""
        with tf.GradientTape() as tape:
            tape.watch([x, *values])
            y = self.branches(values, x, index, step, first_row)
        return tape.gradient(y, [x, *values], output_gradients=dy)

    @recomputable
    def branches(self, values, x, index, step, first_row):
        def drop(x, branch):
            c = self.config
            return x if step is None else dropout(x, c.dropout, c.seed, step, 2 * index + branch, first_row)

        with keras.StatelessScope(zip(self.trainable_variables, values, strict=True)):
            x += drop(self.attention(self.norm1(x)), 0)
            return x + drop(self.contract(self.expand(self.norm2(x))), 1)

    def call(self, x, step=None, first_row=0):
        return self.block(self.values(), x, self.index, step, first_row)


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
        self.build((None, config.n_ctx))

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

    def call(self, tokens, training=False, step=None):
        """`step` decides the dropout masks; under `fit` it is the optimizer's."""
        if training and step is None:
            step = self.optimizer.iterations.value
        context = tf.distribute.get_replica_context()
        first_row = (context.replica_id_in_sync_group if context else 0) * tf.shape(tokens)[0]
        x = self.embedding(tokens)
        step = step if training else None
        modes = self.config.layer_modes
        for index, block in enumerate(self.blocks):
            like = self.blocks[modes.index(modes[index % len(modes)])]  # the first of its mode
            run = like.shared if self.shared else like.block
            x = run(block.values(), x, tf.constant(index), step, first_row)
        return tf.cast(self.logits(self.norm(x)), tf.float32)

    def check_patterns(self) -> None:
        """Raises ValueError where a mode does not fit the context, before any step is made."""
        x = tf.TensorSpec([1, self.config.n_ctx, self.config.width], self.compute_dtype)
        for block in self.blocks[: len(self.config.layer_modes)]:
            tf.function(block.attention.call, autograph=False).get_concrete_function(x)

    def decoders(self, batch: int) -> list[DecodeStep]:
        """A decoding step for each block, to be made outside tf.function."""
        return [block.attention.decode_step(batch, self.config.n_ctx) for block in self.blocks]


def bits(logits, tokens):
    """Bits per token [batch, time]: the cross-entropy over ln 2 (section 3)."""
    nats = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=tokens, logits=logits)
    return nats / tf.math.log(2.0)
