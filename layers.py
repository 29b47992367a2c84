"""SparseSelfAttention: the attention of attention.py as a Keras 3 layer, with the pattern as its configuration."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from blocksparse.plan.checks import check_heads
from blocksparse.plan.modes import head_modes

from .attention import attention_impl, blocksparse_attention_impl
from .decode import DecodeStep

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        f"sparse_attention.layers needs Keras on TensorFlow, but Keras runs on {keras.backend.backend()!r}; "
        "set the environment variable KERAS_BACKEND=tensorflow before Keras is imported"
    )


@keras.saving.register_keras_serializable(package="sparse_attention")
class SparseSelfAttention(keras.layers.Layer):
    """Multi-head causal self-attention over a sparse pattern, with its four linear maps.

    attention(X) = attend(X W_q, X W_k, X W_v) W_p, each W with a bias (paper, equation 2; heads: section 5.1).

    Args:
        heads: number of heads; divides width, key_width.
        attn_mode, local_attn_ctx, blocksize, num_verts, vertsize: the pattern, as in `blocksparse_attention_impl`.
            A tuple of modes gives one per head, cycled.
        key_width: width of queries and keys over all heads, the input's by default (the paper halves it for images).
        blocksparse: False computes the same with `attention_impl`, dense; its cost is quadratic.
        kernel_initializer: of W_q, W_k and W_v.
        output_initializer: of W_p; kernel_initializer by default.

    Call: x [batch, time, width] -> [batch, time, width] of the compute dtype; time is static.
    Raises: ValueError when heads does not divide the widths, and what `blocksparse_attention_impl` raises.
    """

    def __init__(
        self,
        heads: int,
        attn_mode: str | Sequence[str] = "all",
        local_attn_ctx: int | None = None,
        blocksize: int = 32,
        num_verts: int | None = None,
        vertsize: int | None = None,
        key_width: int | None = None,
        blocksparse: bool = True,
        kernel_initializer="glorot_uniform",
        output_initializer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.heads = heads
        self.attn_mode = attn_mode if isinstance(attn_mode, str) else tuple(attn_mode)
        self.local_attn_ctx = local_attn_ctx
        self.blocksize = blocksize
        self.num_verts = num_verts
        self.vertsize = vertsize
        head_modes(**self.pattern)  # raises what means no pattern here rather than in a call
        self.key_width = key_width
        self.blocksparse = blocksparse
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.output_initializer = keras.initializers.get(output_initializer)

    @property
    def pattern(self) -> dict:
        """The arguments that say who sees whom, as attention.py and decode.py take them."""
        names = "heads attn_mode local_attn_ctx blocksize num_verts vertsize".split()
        return {name: getattr(self, name) for name in names}

    def build(self, input_shape):
        width = input_shape[-1]
        key_width = self.key_width or width
        for name, value in (("the input's width", width), ("key_width", key_width)):
            check_heads(self.heads, name, value)

        def dense(units, name, initializer):
            # An initializer object with a seed repeats its draw: every matrix gets a copy with one of its own.
            copy = initializer.clone() if hasattr(initializer, "clone") else initializer
            layer = keras.layers.Dense(units, kernel_initializer=copy, name=name, dtype=self.dtype_policy)
            layer.build((*input_shape[:-1], width))
            return layer

        self.query = dense(key_width, "query", self.kernel_initializer)
        self.key = dense(key_width, "key", self.kernel_initializer)
        self.value = dense(width, "value", self.kernel_initializer)
        self.project = dense(width, "project", self.output_initializer or self.kernel_initializer)

    def call(self, x):
        attend = blocksparse_attention_impl if self.blocksparse else attention_impl
        return self.project(attend(self.query(x), self.key(x), self.value(x), **self.pattern))

    def compute_output_shape(self, input_shape):
        return input_shape

    def decode_step(self, batch: int, n_ctx: int) -> DecodeStep:
        """The same attention one position at a time, for `step`; the layer has to be built."""
        return DecodeStep(batch, n_ctx, self.key.units, self.value.units, **self.pattern)

    def step(self, x: tf.Tensor, decode: DecodeStep, position) -> tf.Tensor:
        """x [batch, width] at `position` -> output [batch, width].

        Queries and keys are float32 here whatever the compute dtype: their products can overflow float16 (paper,
        section 5.6).
        """
        q, k, v = (tf.cast(layer(x), tf.float32) for layer in (self.query, self.key, self.value))
        return self.project(tf.cast(decode(q, k, v, position), self.compute_dtype))

    def get_config(self):
        return {
            **super().get_config(),
            **self.pattern,
            "key_width": self.key_width,
            "blocksparse": self.blocksparse,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "output_initializer": keras.initializers.serialize(self.output_initializer),
        }
