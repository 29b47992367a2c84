"""SparseTransformerBlock: the residual block of the Sparse Transformer as a Keras 3 layer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import inf
from numbers import Real

import keras
import tensorflow as tf

from blocksparse.native import devices
from blocksparse.plan.callback import Predicate
from blocksparse.plan.checks import check_heads

from ..attention import MAX_TIME
from . import alike, written_out
from .dropout import dropout as drop
from .dropout import dropout_keys
from .masks import layer_segments, refuse_attention_mask
from .rows import gelu
from .self_attention import SparseSelfAttention, load_predicates, quantized


@keras.saving.register_keras_serializable(package="sparse_attention")
class SparseTransformerBlock(keras.layers.Layer):
    """h = x + drop(attention(norm1(x))), y = h + drop(gelu(norm2(h) W_e + b_e) W_c + b_c): one block of section 5.2.

    gelu(x) = x sigmoid(1.702 x); attention is a SparseSelfAttention. The gradient is written out.

    Args:
        heads, ..., causal, kv_heads, max_time: as in SparseSelfAttention; output_initializer is of W_p and W_c,
            kernel_initializer of the other matrices.
        ff_ratio: width of the pre-activation over the input's.
        dropout: share of both branches' outputs that is dropped in training; from 0 up to, but without, 1.
        seed: of dropout, an integer; drawn from Keras's global generator by default.
        recompute: what the backward pass computes again. "none" keeps about 7 + 2 ff_ratio tensors of x's size a block;
            "selective" 2, attention running once; "whole" x alone.
        epsilon: of both norms.

    Call: x [batch, time, width] -> [batch, time, width] of the compute dtype, for any time. segment_ids, lengths and
        Keras masks as in SparseSelfAttention.
    Raises: ValueError for arguments that do not fit, and what SparseSelfAttention raises. The gradient cannot be
        differentiated again (LookupError). Where a linear map was quantized or got a low-rank addition, the block is
        made of its layers: for inference, and to train such additions.
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
        sees: Predicate | Sequence[Predicate] | None = None,
        causal: bool = True,
        ff_ratio: float = 4.0,
        dropout: float = 0.0,
        seed: int | None = None,
        recompute: str = "selective",
        epsilon: float = 1e-5,
        kv_heads: int | None = None,
        max_time: int = MAX_TIME,
        **kwargs,
    ):
        super().__init__(**{"autocast": False, **kwargs})  # weights arrive as float32
        self.supports_masking = True
        self.input_spec = keras.layers.InputSpec(ndim=3)
        if recompute not in written_out.RECOMPUTE:
            raise ValueError(f"recompute={recompute!r}: choose one of {', '.join(written_out.RECOMPUTE)}")
        for name, value, fits, wanted in (
            ("dropout", dropout, lambda x: 0 <= x < 1, "at least 0 and less than 1"),
            ("ff_ratio", ff_ratio, lambda x: 0 < x < inf, "above 0"),
            ("epsilon", epsilon, lambda x: 0 <= x < inf, "at least 0"),
        ):
            if not isinstance(value, Real) or not fits(value):
                raise ValueError(f"{name}={value!r}: it has to be {wanted}")
        self.ff_ratio, self.dropout, self.seed, self.recompute = ff_ratio, dropout, seed, recompute
        self.epsilon = epsilon
        own = dict(dtype=self.dtype_policy)
        norm = partial(keras.layers.LayerNormalization, epsilon=epsilon, **own)
        self.norm1 = norm(name="norm1")  # made in the order of written_out.Weights
        self.attention = SparseSelfAttention(
            heads, attn_mode, local_attn_ctx, blocksize, num_verts, vertsize, key_width, blocksparse,
            kernel_initializer, output_initializer, sees, causal, kv_heads, max_time, name="attention", **own
        )  # fmt: skip
        self.norm2 = norm(name="norm2")
        self.draws = keras.random.SeedGenerator(seed) if dropout else None
        self._maps: dict[str, dict] = {}  # configurations of linear maps that were quantized, by their names

    def build(self, shape):
        width, attention = shape[-1], self.attention
        check_heads(attention.heads, "the input's width", width)
        inner = max(1, int(round(width * self.ff_ratio, 6)))  # 1.15 * 100 is a little less than 115
        first, last = (
            initializer.clone() if hasattr(initializer, "clone") else initializer
            for initializer in (
                attention.kernel_initializer,
                attention.output_initializer or attention.kernel_initializer,
            )
        )

        def dense(units, name, **own):
            config = self._maps.get(name) or dict(units=units, name=name, dtype=self.dtype_policy)
            return keras.layers.Dense.from_config(config | own)

        self.expand = dense(inner, "expand", activation=gelu, kernel_initializer=first)
        self.contract = dense(width, "contract", kernel_initializer=last)
        for layer in (self.norm1, attention, self.norm2, self.expand):
            layer.build(shape)
        self.contract.build((*shape[:-1], inner))

    def call(
        self,
        x,
        mask=None,
        attention_mask=None,
        segment_ids=None,
        lengths=None,
        x_mask=None,
        training=None,
    ):
        refuse_attention_mask(attention_mask)
        segments = layer_segments(x, x_mask if mask is None else mask, segment_ids, lengths)
        x = tf.cast(x, self.compute_dtype)
        keys = self._drawn(x) if training and self.dropout else None
        if self._is_changed():
            return self._of_layers(x, keys, segments)
        return self.run(self.values(), x, keys, segments, self._passes(x, training))

    def _of_layers(self, x, keys, segments):
        """The block from its layers, each with a gradient of its own."""

        def dropped(y, branch):
            return y if keys is None else drop(y, self.dropout, keys[branch])

        x += dropped(self.attention(self.norm1(x), segment_ids=segments), 0)
        return x + dropped(self.contract(self.expand(self.norm2(x))), 1)

    def values(self) -> list[tf.Tensor]:
        """The weights in the order of written_out.Weights."""
        layers = (self.norm1, self.attention, self.norm2, self.expand, self.contract)
        return [tf.convert_to_tensor(variable.value) for layer in layers for variable in layer.weights]

    @property
    def kind(self) -> alike.Alike:
        """What it has in common with blocks that compute the same."""
        return alike.Alike(self.attention.rule, self.epsilon, self.recompute, self.dropout)

    def run(self, values, x, keys=None, segments=None, passes=None):
        """The block with these weights; keys [2, batch, 2], uint32, decide what is dropped; segments: as segment_ids;
        passes: as alike.run takes them.
        """
        return alike.run(self.kind, values, x, keys, segments, passes)

    def _passes(self, x, training):
        """Compiled ones, where a GPU trains in a graph; None is the graph's own operations.

        Not where the program goes on to other machines (a saved one is traced outside training), nor for a length that
        may change, each of which would be compiled.
        """
        if not training or x.shape[1] is None or not tf.inside_function() or devices.in_xla():
            return None
        return alike.shared(self.kind, compiled=True) if devices.compiles_for_gpu() else None

    def _drawn(self, x):
        """Keys of a new draw, of which every replica takes its share."""
        batch, (one, other) = tf.shape(x)[0], tf.unstack(tf.cast(self.draws.next(), tf.uint32))
        row = first_row(batch)
        return tf.stack([dropout_keys(one, other, branch, batch, row) for branch in (0, 1)])

    def _is_changed(self) -> bool:
        """Whether a linear map computes something else than x W + b: it is quantized, or has a low-rank addition."""
        attention = self.attention
        maps = attention.query, attention.key, attention.value, attention.project, self.expand, self.contract
        return any(layer.quantization_mode or layer.lora_enabled for layer in maps)

    def compute_output_spec(
        self,
        x,
        mask=None,
        attention_mask=None,
        segment_ids=None,
        lengths=None,
        x_mask=None,
        training=None,
    ):
        refuse_attention_mask(attention_mask)  # a functional model says so while it is made
        return super().compute_output_spec(x)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        names = "ff_ratio dropout seed recompute epsilon".split()
        inner = self.attention.get_config()
        for name in ("name", "trainable", "dtype", "use_bias", "bias_initializer"):
            inner.pop(name, None)
        if self.built and (found := quantized([self.expand, self.contract])):
            inner["maps"] = inner.get("maps", {}) | found
        return {**super().get_config(), **inner, **{name: getattr(self, name) for name in names}}

    @classmethod
    def from_config(cls, config):
        maps = config.get("maps", {})
        given = {name: value for name, value in config.items() if name != "maps"}
        layer = super().from_config(given | {"sees": load_predicates(config.get("sees"))})
        layer._maps = layer.attention._maps = maps
        return layer


def first_row(batch):
    """The number of this replica's first row in a batch that replicas share."""
    context = tf.distribute.get_replica_context()
    return (context.replica_id_in_sync_group if context else 0) * batch
