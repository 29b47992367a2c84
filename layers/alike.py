"""The two passes of a residual block as functions that all blocks alike share: traced once, and compiled once.

XLA puts every call's body in the call's place before it compiles, so that a program of twelve blocks takes twelve times
as long to compile as one of a block. A function that TensorFlow hands to XLA by itself is compiled by itself, and found
again by its arguments' shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import tensorflow as tf

from blocksparse.recomputation import graph
from blocksparse.recomputation.attach import once, with_gradient

from .rule import Rule
from .written_out import Block, Kept, Weights

NO_SECOND = (
    "a SparseTransformerBlock's gradient is written out and cannot be differentiated again; where second or "
    "forward-mode derivatives are needed, build the block of Keras's layers around attention_impl"
)


class Alike(NamedTuple):
    """All that a block computes with besides weights, input and keys; has a hash. Fields as in written_out.Block."""

    rule: Rule
    epsilon: float
    recompute: str
    rate: float

    def _block(self, x: tf.Tensor, keys, segments) -> Block:
        attention = self.rule.passes(x.shape[1], segments)
        return Block(attention, self.epsilon, self.recompute, self.rate, keys)

    def forward(self, values, x, keys, segments) -> tuple[tf.Tensor, Kept]:
        """y, and what is kept but x, of which a compiled function would hand on a copy."""
        y, kept = self._block(x, keys, segments).forward(Weights(*values), x)
        return y, kept._replace(x=None)

    def backward(self, dy, kept, values, keys, segments) -> list[tf.Tensor]:
        """The gradients of x and the values."""
        dx, found = self._block(dy, keys, segments).gradient(dy, kept, Weights(*values))
        return [dx, *found]


class Passes(NamedTuple):
    """Alike.forward and .backward, or functions of them; apart: nothing of one can be merged with the other's."""

    forward: Callable
    backward: Callable
    apart: bool


@lru_cache(maxsize=64)
def shared(alike: Alike, *, compiled: bool) -> Passes:
    """Functions of both passes, the same for all that are alike; compiled: by XLA, each apart."""
    function = tf.function(autograph=False, jit_compile=compiled or None)
    return Passes(function(alike.forward), function(alike.backward), compiled)


def run(alike: Alike, values, x, keys=None, segments=None, passes: Passes | None = None) -> tf.Tensor:
    """y [batch, time, width] of a block with these weights, with its gradient.

    keys: as in written_out.Block; segments: as segment_ids; passes: what computes, `shared` or not.
    """
    forward, backward, apart = passes or Passes(alike.forward, alike.backward, tf.executing_eagerly())

    def compute(x, *values):
        y, kept = forward(values, x, keys, segments)
        held = [] if alike.recompute == "none" else [x]  # the gradient holds only what it reads

        def gradient(dy):
            dy = tf.ensure_shape(dy, y.shape)
            again = kept._replace(x=held[0]) if held else kept
            if held and not apart:
                again = _late(again, dy)
            return once(backward(dy, again, values, keys, segments), [dy, *held, *values], NO_SECOND)

        return y, gradient

    return with_gradient(compute, x, *values)


def _late(kept: Kept, dy: tf.Tensor) -> Kept:
    """The same tensors; nothing can merge what is computed again of them with what was computed first."""
    names = [name for name, x in kept._asdict().items() if x is not None]
    return kept._replace(**dict(zip(names, graph.late([getattr(kept, name) for name in names], [dy]))))
