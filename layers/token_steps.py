"""Many decoding steps of a model of SparseTransformerBlocks in one operation on a GPU, one CUDA graph a position."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from blocksparse.gpu.steps import Group, StepKey, reason_against
from blocksparse.native import cuda, devices
from sparse_attention.decode import DecodeStep

from .step_tables import Tables, tables, word_count
from .transformer_block import SparseTransformerBlock

_DTYPES = {"float16": "f16", "bfloat16": "bf16", "float32": "f32"}


class TokenSteps:
    """Draws tokens position by position, each from the logits of the model's last norm and map, without the host.

        steps = TokenSteps(model.blocks, decoders, model.norm, model.logits, table, ragged=False, cut=False)
        tokens = steps(first, streams, steps.tables(positions), integers, reals)

    Args: blocks; their decoders, whose caches the steps fill; norm, a LayerNormalization; logits, a Dense layer without
        a bias; table [count, width], the tokens' part of the first stream; ragged, whether rows are at positions of
        their own; cut, whether draws are cut by top_k or top_p. The weights are those of now.
    Call: first [batch, width], of the compute dtype, the first stream at the first position; streams [steps + 1, rows,
        width], float32, the positions' part of it, from the first position on; tables; integers, uint32: seed,
        number of the first draw, top_k; reals, float32: temperature, top_p. rows: batch if ragged, else 1. Returns
        int32 [steps, batch]. The caches then hold the keys of these positions, of which the decoders know nothing: go
        on by TokenSteps or from a `prefill`.
    Raises: ValueError where `why_not` has a reason; InvalidArgumentError for shapes that do not fit.
    """

    def __init__(
        self,
        blocks: Sequence[SparseTransformerBlock],
        decoders: Sequence[DecodeStep],
        norm: keras.layers.LayerNormalization,
        logits: keras.layers.Dense,
        table: tf.Tensor,
        ragged: bool = False,
        cut: bool = False,
    ):
        if reason := why_not(blocks, decoders, logits):
            raise ValueError(f"a GPU's steps do not serve this model: {reason}")
        self.decoders, self.ragged = decoders, ragged
        self.distinct, layers = _distinct(decoders)
        key = _key(blocks, decoders, logits, self.distinct, ragged, cut)
        self._dtype = blocks[0].compute_dtype
        starts = [
            sum(len(each.groups) for each in self.distinct[:index]) for index in range(len(self.distinct))
        ]
        numbers = [
            [starts[kind] + group for group in range(len(self.distinct[kind].groups))] for kind in layers
        ]
        self._attributes = dict(
            key=str(key).rpartition("-sm")[0],
            groups=[group for layer in numbers for group in layer],
            of_layer=list(map(len, numbers)),
        )
        with tf.init_scope():
            self._norms = [_norm(each) for block in blocks for each in (block.norm1, block.norm2)] + [
                _norm(norm)
            ]
            self._maps = [part for block in blocks for part in _maps(block, self._dtype)]
            self._maps.append(_transposed(self._dtype, logits))
            self._table = tf.cast(tf.convert_to_tensor(table), tf.float32)
            self._members = [
                tf.constant(group.heads, tf.uint32) for each in self.distinct for group in each.groups
            ]

    def tables(self, positions: tf.Tensor) -> list[Tables]:
        """Those of every cache for int32 positions [steps, rows]."""
        return [tables(group, positions, each.n_ctx) for each in self.distinct for group in each.groups]

    def __call__(self, first, streams, found: list[Tables], integers, reals) -> tf.Tensor:
        operands = [
            each for members, own in zip(self._members, found, strict=True) for each in (members, *own)
        ]
        caches = [cache.handle for decoder in self.decoders for cache in decoder.caches]
        return devices.gpu_library().ops.blocksparse_steps(
            x=tf.cast(first, self._dtype),
            integers=integers,
            reals=reals,
            table=self._table,
            streams=streams,
            norms=self._norms,
            maps=self._maps,
            caches=caches,
            tables=operands,
            **self._attributes,
        )


def why_not(
    blocks: Sequence[SparseTransformerBlock], decoders: Sequence[DecodeStep], logits: keras.layers.Dense
) -> str | None:
    """Why a GPU's steps cannot draw from this model here, as a sentence; None where they can."""
    if not cuda.capabilities():
        return "there is no GPU"
    if devices.load_kernels() is None:
        return "the kernels cannot be built or are switched off"
    if blocks[0].compute_dtype not in _DTYPES:
        return f"the compute dtype is {blocks[0].compute_dtype}"
    if logits.use_bias:
        return "the logits have a bias"
    if decoders[0].kv_heads != decoders[0].heads:
        return "heads share keys and values"
    distinct, _ = _distinct(decoders)
    return reason_against(_key(blocks, decoders, logits, distinct, False, False))


def _key(blocks, decoders, logits, distinct, ragged: bool, cut: bool) -> StepKey:
    first, decoder = blocks[0], decoders[0]
    groups = [
        Group(len(group.heads), group.slots, word_count(group), len(group.factors))
        for each in distinct
        for group in each.groups
    ]
    return StepKey(
        dtype=_DTYPES.get(first.compute_dtype, ""),
        batch=decoder.batch,
        width=first.contract.units,
        heads=decoder.heads,
        key=decoder.key_width // decoder.heads,
        value=decoder.value_width // decoder.heads,
        hidden=first.expand.units,
        count=logits.units,
        ragged=ragged,
        cut=cut,
        groups=tuple(groups),
        capability=min(cuda.capabilities(), default=0),
    )


def _distinct(decoders: Sequence[DecodeStep]) -> tuple[list[DecodeStep], list[int]]:
    """One decoder of each pattern, and for every decoder which of these is like it."""
    found: list[DecodeStep] = []
    kinds = []
    for decoder in decoders:
        alike = [index for index, other in enumerate(found) if _pattern(other) == _pattern(decoder)]
        kinds.append(alike[0] if alike else len(found))
        found += [] if alike else [decoder]
    return found, kinds


def _pattern(decoder: DecodeStep) -> list[tuple]:
    """What decides which slots the heads see and write, n_ctx aside."""
    return [(group.heads, group.modes) for group in decoder.groups]


def _norm(layer: keras.layers.LayerNormalization) -> tf.Tensor:
    """gamma, beta and epsilon, one behind the other."""
    numbers = [tf.convert_to_tensor(layer.gamma), tf.convert_to_tensor(layer.beta), [layer.epsilon]]
    return tf.concat([tf.cast(each, tf.float32) for each in numbers], axis=0)


def _maps(block: SparseTransformerBlock, dtype: str) -> list[tf.Tensor]:
    """Weights [out, in] and biases of a block's four products."""
    own = block.attention
    maps = (own.query, own.key, own.value), (own.project,), (block.expand,), (block.contract,)
    return [part for each in maps for part in (_transposed(dtype, *each), _biases(dtype, *each))]


def _transposed(dtype: str, *layers: keras.layers.Dense) -> tf.Tensor:
    for layer in layers:
        if layer.quantization_mode:
            raise ValueError(
                f"{layer.name} is quantized ({layer.quantization_mode}); steps multiply by the weights as they were "
                "trained: sample from the model before it is quantized"
            )
    return tf.transpose(tf.concat([tf.cast(layer.kernel, dtype) for layer in layers], axis=1))


def _biases(dtype: str, *layers: keras.layers.Dense) -> tf.Tensor:
    return tf.concat([tf.cast(layer.bias, dtype) for layer in layers], axis=0)
