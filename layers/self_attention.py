"""SparseSelfAttention: the attention of attention.py as a Keras 3 layer, with the pattern as its configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from blocksparse import Pattern
from blocksparse.plan.callback import Predicate, is_pattern
from blocksparse.plan.checks import check_heads, check_kv_heads, check_positive
from blocksparse.plan.modes import head_modes

from ..attention import MAX_TIME, attention_impl, blocksparse_attention_impl
from ..decode import DecodeStep
from .masks import layer_segments, refuse_attention_mask
from .rule import Rule


@keras.saving.register_keras_serializable(package="sparse_attention")
class SparseSelfAttention(keras.layers.Layer):
    """Multi-head self-attention over a sparse pattern, causal by default, with its four linear maps.

    attention(X) = attend(X W_q, X W_k, X W_v) W_p, each W with a bias (paper, equation 2; heads: section 5.1).

    Args:
        heads: number of heads; divides width, key_width. num_heads is another name for it.
        attn_mode, local_attn_ctx, blocksize, num_verts, vertsize: the pattern, as in `blocksparse_attention_impl`.
            A tuple of modes gives one per head, cycled.
        key_width: width of queries and keys over all heads, the input's by default (the paper halves it for images).
        blocksparse: False computes the same with `attention_impl`, dense; its cost is quadratic.
        kernel_initializer: of W_q, W_k and W_v.
        output_initializer: of W_p; kernel_initializer by default.
        sees: a pattern of one's own in the place of attn_mode, as `blocksparse.from_mask` takes it; causal only if it
            says so. To save the layer, its functions need @keras.saving.register_keras_serializable.
        causal: False lets positions look ahead as they look back (encoders); attn_mode only.
        kv_heads: heads of keys and values, a divisor of heads, which they are by default: query head h reads key head
            h // (heads / kv_heads). W_k and W_v, and the caches of decode_step, shrink by heads / kv_heads.
        max_time: the most positions where the model does not know its time, as over keras.Input((None, width)).
        num_heads, key_dim, use_bias, bias_initializer: as in keras.layers.MultiHeadAttention. key_dim is the width of
            one head's queries and keys, key_width / heads. That layer's other arguments mean nothing here; of its
            dropout, which drops weights of the attention, 0 alone is taken.

    Call: x [batch, time, width] -> [batch, time, width] of the compute dtype, for any time.
        segment_ids, lengths: as in `blocksparse_attention_impl`. A Keras mask, bool [batch, time], as Embedding(
        mask_zero=True) and Masking attach it to x, makes padding of what it hides, on either side, and is passed on.
        What x holds there has to be finite.
    Raises: ValueError when heads does not divide the widths, when attention_mask is given (no pattern says it), and
        what `blocksparse_attention_impl` raises.
    """

    def __init__(
        self,
        heads: int | None = None,
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
        kv_heads: int | None = None,
        max_time: int = MAX_TIME,
        num_heads: int | None = None,
        key_dim: int | None = None,
        use_bias: bool = True,
        bias_initializer="zeros",
        dropout: float = 0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.input_spec = keras.layers.InputSpec(ndim=3)
        heads = _one_of("heads", heads, "num_heads", num_heads)
        if key_dim is not None:
            check_positive("key_dim", key_dim)
            key_width = _one_of(
                "key_width", key_width, f"heads * key_dim, {heads} * {key_dim} =", heads * key_dim
            )
        if dropout:
            raise ValueError(
                f"dropout={dropout} would drop weights of the attention, which nothing here stores: leave it out, and "
                "drop of the layer's output, by keras.layers.Dropout or SparseTransformerBlock(dropout=...)"
            )
        if key_width is not None:
            check_positive("key_width", key_width)
        check_positive("max_time", max_time)
        self.heads = heads
        self.max_time = max_time
        self.use_bias = use_bias
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kv_heads = kv_heads
        self.attn_mode = attn_mode if isinstance(attn_mode, str) else tuple(attn_mode)
        self.local_attn_ctx = local_attn_ctx
        self.blocksize = blocksize
        self.num_verts = num_verts
        self.vertsize = vertsize
        self.causal = causal
        head_modes(**self.pattern)  # raises what means no pattern here rather than in a call
        check_kv_heads(kv_heads, heads)
        self.key_width = key_width
        self.blocksparse = blocksparse
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.output_initializer = keras.initializers.get(output_initializer)
        self.sees = tuple(sees) if isinstance(sees, Sequence) else sees
        if sees is not None and (self.attn_mode != "all" or not blocksparse or not causal):
            raise ValueError(
                f"sees is the whole pattern of a block-sparse layer, but attn_mode={attn_mode!r}, "
                f"blocksparse={blocksparse} and causal={causal} were given: leave them out, or sees"
            )
        _check_hash(self.sees)
        self._maps: dict[str, dict] = {}  # configurations of linear maps that were quantized, by their names

    @property
    def pattern(self) -> dict:
        """The arguments that say who sees whom, as attention.py and decode.py take them."""
        names = "heads attn_mode local_attn_ctx blocksize num_verts vertsize causal".split()
        return {name: getattr(self, name) for name in names}

    @property
    def sharing(self) -> dict:
        """The argument that says which heads share keys, as attention.py and decode.py take it."""
        return dict(kv_heads=self.kv_heads)

    def build(self, input_shape):
        width = input_shape[-1]
        key_width = self.key_width or width
        for name, value in (("the input's width", width), ("key_width", key_width)):
            check_heads(self.heads, name, value)
        group = self.heads // check_kv_heads(self.kv_heads, self.heads)

        def dense(units, name, initializer):
            # An initializer object with a seed repeats its draw: every matrix gets a copy with one of its own.
            copy = initializer.clone() if hasattr(initializer, "clone") else initializer
            if name in self._maps:
                layer = keras.layers.Dense.from_config(dict(self._maps[name]))
            else:
                bias = dict(use_bias=self.use_bias, bias_initializer=self.bias_initializer)
                layer = keras.layers.Dense(
                    units, kernel_initializer=copy, name=name, dtype=self.dtype_policy, **bias
                )
            layer.build((*input_shape[:-1], width))
            return layer

        self.query = dense(key_width, "query", self.kernel_initializer)
        self.key = dense(key_width // group, "key", self.kernel_initializer)
        self.value = dense(width // group, "value", self.kernel_initializer)
        self.project = dense(width, "project", self.output_initializer or self.kernel_initializer)

    def call(self, x, mask=None, attention_mask=None, segment_ids=None, lengths=None, x_mask=None):
        # Keras calls the mask of x `mask` where x is the only tensor, and `x_mask` beside segment_ids or lengths.
        refuse_attention_mask(attention_mask)
        segments = layer_segments(x, x_mask if mask is None else mask, segment_ids, lengths)
        return self.project(self._attend(self.query(x), self.key(x), self.value(x), segments))

    def _attend(self, q, k, v, segments=None):
        if not self.blocksparse:
            return attention_impl(q, k, v, **self.pattern, **self.sharing, segment_ids=segments)
        sharing = dict(**self.sharing, segment_ids=segments)
        if self.sees is None:
            return blocksparse_attention_impl(q, k, v, **self.pattern, max_time=self.max_time, **sharing)
        return self.rule.own_pattern(q.shape[1]).attention(q, k, v, any_time=True, **sharing)

    @property
    def rule(self) -> Rule:
        """The attention between the maps."""
        pattern = tuple(self.pattern.items())
        return Rule(pattern, self.kv_heads, self.blocksparse, self.sees, self.max_time)

    def compute_output_spec(
        self, x, mask=None, attention_mask=None, segment_ids=None, lengths=None, x_mask=None
    ):
        refuse_attention_mask(attention_mask)  # a functional model says so while it is made
        return super().compute_output_spec(x)

    def compute_output_shape(self, input_shape):
        return input_shape

    def decode_step(self, batch: int, n_ctx: int) -> DecodeStep:
        """The same attention one position at a time, for `step`; the layer has to be built, of an attn_mode.

        Its caches are of the compute dtype.
        """
        if self.sees is not None:
            raise ValueError(
                "a layer made with sees= has no decode_step: its keys may be anywhere; use attn_mode"
            )
        if not self.causal:
            raise ValueError("a layer made with causal=False has no decode_step: its keys may be ahead")
        if not self.built:
            raise ValueError(
                f"the layer {self.name} has no weights yet: call it, or its build([batch, time, width])"
            )
        pattern = {name: value for name, value in self.pattern.items() if name != "causal"}
        widths = self.query.units, self.project.units
        return DecodeStep(batch, n_ctx, *widths, dtype=self.compute_dtype, **pattern, **self.sharing)

    def step(self, x: tf.Tensor, decode: DecodeStep, position) -> tf.Tensor:
        """x [batch, width] at `position`, a scalar or [batch] -> output [batch, width].

        Products of queries and keys are float32 whatever the compute dtype: they can overflow float16 (paper, section
        5.6).
        """
        out = decode(self.query(x), self.key(x), self.value(x), position)
        return self.project(tf.cast(out, self.compute_dtype))

    def prefill(self, x: tf.Tensor, decode: DecodeStep, lengths=None) -> tf.Tensor:
        """The layer on x [batch, time, width], whose first `lengths` positions the caches of `decode` take.

        Steps go on at position lengths, a scalar or [batch], time by default.
        """
        q, k, v = self.query(x), self.key(x), self.value(x)
        decode.prefill(k, v, lengths)
        return self.project(self._attend(q, k, v))

    def get_config(self):
        config = {
            **super().get_config(),
            **self.pattern,
            **self.sharing,
            "key_width": self.key_width,
            "blocksparse": self.blocksparse,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "output_initializer": keras.initializers.serialize(self.output_initializer),
            "max_time": self.max_time,
            "use_bias": self.use_bias,
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "sees": _saved(self.sees),
        }
        maps = [self.query, self.key, self.value, self.project] if self.built else []
        return config | ({"maps": found} if (found := quantized(maps)) else {})

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        maps = config.pop("maps", {})
        layer = super().from_config(config | {"sees": load_predicates(config.get("sees"))})
        layer._maps = maps
        return layer


def _one_of(name: str, value: int | None, other: str, same: int | None) -> int:
    """The number that was given under one of two names, or alike under both."""
    if value is None and same is None:
        raise TypeError(f"{name} is missing; give the number of heads, as {name} or as {other}")
    if value is not None and same is not None and value != same:
        raise ValueError(f"{name}={value}, but {other} {same}; they mean the same: give one of them")
    return same if value is None else value  # type: ignore[return-value]


def quantized(maps: Sequence[keras.layers.Dense]) -> dict[str, dict]:
    """The configurations of those linear maps that were quantized, by their names: with these they are made again."""
    return {layer.name: layer.get_config() for layer in maps if layer.quantization_mode}


def _check_hash(sees) -> None:
    """Raises TypeError for a predicate whose plan could not be found again, or would be another's once it changed."""
    try:
        hash(sees)
    except TypeError as error:
        raise TypeError(
            f"sees is {sees!r}, which can change and has no hash; give a function, or a @dataclass(frozen=True)"
        ) from error


def _saved(sees) -> Any:
    """A predicate by its registered name, a Pattern as that and its numbers."""
    if sees is None:
        return None
    if isinstance(sees, tuple):
        return [_saved(each) for each in sees]
    if is_pattern(sees):
        return {name: getattr(sees, name) for name in _PROMISES} | {"sees": _saved(sees.sees)}
    name = keras.saving.get_registered_name(sees)
    if not isinstance(name, str) or keras.saving.get_registered_object(name) is not sees:
        raise ValueError(
            f"sees is {sees!r}, which cannot be saved by name: decorate the function with "
            '@keras.saving.register_keras_serializable(package="...")'
        )
    return name


def load_predicates(saved: Any) -> Any:
    if isinstance(saved, (list, tuple)):
        return tuple(map(load_predicates, saved))
    if isinstance(saved, dict):
        return Pattern(**{**saved, "sees": load_predicates(saved["sees"])})
    if not isinstance(saved, str):
        return saved
    found = keras.saving.get_registered_object(saved)
    if found is None:
        raise ValueError(f"sees={saved!r} is not registered: import the module that registers it, then load")
    return found


_PROMISES = ("shift", "period", "reach", "ahead")
