"""Samples drawn by a GPU alone: all steps of a chunk in one operation, in the place of a loop that XLA compiles."""

from __future__ import annotations

import tensorflow as tf

from sparse_attention.layers.token_steps import TokenSteps, why_not

from .model import SparseTransformer
from .stepping import Chunk


def serves(model: SparseTransformer, decoders) -> bool:
    """Whether this machine has a GPU whose kernels draw from this model."""
    return why_not(model.blocks, decoders, model.logits) is None


def make_chunk(of: Chunk):
    """generation.make_chunk's function, but with draws of its own: the same distribution, other numbers of a seed.

    Tokens are uint32. They stay on the GPU, which goes on to the next chunk without the host; int32 would not.
    """
    model, count, size = of.model, of.count, of.size
    cut = of.top_k is not None or of.top_p is not None
    steps = TokenSteps(
        model.blocks, of.decoders, model.norm, model.logits, model.embedding.token, of.ragged, cut
    )
    kept = model.logits.units if of.top_k is None else of.top_k
    chance = 1.0 if of.top_p is None else of.top_p

    @tf.function(jit_compile=True, autograph=False)
    def prepare(token, position):
        first = model.embedding.step(tf.cast(token, tf.int32), position)
        positions = tf.reshape(position, [1, -1]) + tf.range(size + 1)[:, None]
        streams = model.embedding.place(tf.reshape(positions, [-1]))
        rows = count if of.ragged else 1
        found = steps.tables(tf.ensure_shape(positions[:-1], [size, rows]))
        return (
            tf.broadcast_to(first, [count, first.shape[1]]),
            tf.reshape(streams, [size + 1, rows, -1]),
            found,
        )

    @tf.function(jit_compile=True, autograph=False)
    def finish(drawn):
        return tf.transpose(drawn), drawn[-1]

    @tf.function(autograph=False)
    def draw(token, position, number, temperature, seed):
        first, streams, found = prepare(token, position)
        integers = tf.bitcast(tf.cast(tf.stack([seed, number, kept]), tf.int32), tf.uint32)
        reals = tf.cast(tf.stack([temperature, chance]), tf.float32)
        return finish(tf.bitcast(steps(first, streams, found, integers, reals), tf.uint32))

    def chunk(token, *how):
        return draw(tf.cast(token, tf.uint32), *how)

    return chunk
