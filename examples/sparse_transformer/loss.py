"""The model behind its last block, with the loss: norm, logits and cross-entropy, their gradient written out.

Left to TensorFlow, these few operations took as long as a block's whole forward pass: each is a kernel of its own that
reads and writes float32 rows, and logits of a whole batch stand in memory in several float32 copies. Here logits are
kept once, of the compute dtype, and all between two products is computed where XLA needs it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf

from blocksparse.recomputation.attach import once, with_gradient
from sparse_attention.layers.rows import flat, normal, normal_gradient, scale_of, unflat, wide
from sparse_attention.layers.written_out import folded, unfolded


class Weights(NamedTuple):
    """gamma and beta [width] of the norm, kernel [width, tokens] of the logits, which may be of the compute dtype."""

    gamma: Any
    beta: Any
    kernel: Any


class Kept(NamedTuple):
    """What the gradient needs besides: of all positions, [batch * time, ..]; lse is float32."""

    rows: tf.Tensor
    scale: tf.Tensor
    logits: tf.Tensor
    lse: tf.Tensor


class Loss:
    """The mean over all tokens of -ln p(token), float32: nats = Loss(epsilon, xla)(weights, x, tokens).

    x: the residual stream [batch, time or more, width]; tokens: int32 [batch, time]. xla: compiled, in two functions.
    """

    def __init__(self, epsilon: float, xla: bool):
        self.epsilon = epsilon
        graph = tf.function(autograph=False, jit_compile=xla or None)
        self.forward, self.backward = graph(self._forward), graph(self._backward)

    def __call__(self, weights: Weights, x: tf.Tensor, tokens: tf.Tensor) -> tf.Tensor:
        def compute(x, *values):
            nats, kept = self.forward(Weights(*values), x, tokens)

            def gradient(dnats):
                more = x.shape[1] - tokens.shape[1]
                return once(self.backward(dnats, kept, Weights(*values), tokens, more), [dnats, x, *values])

            return nats, gradient

        return with_gradient(compute, x, *weights)

    def _forward(self, weights: Weights, x, tokens):
        rows = flat(x if x.shape[1] == tokens.shape[1] else x[:, : tokens.shape[1]])
        normed = normal(rows, self.epsilon)
        product = self._map(weights, x.dtype)
        logits = tf.matmul(normed, product.kernel)
        shifted = wide(logits) + wide(product.bias)
        top = tf.reduce_max(shifted, axis=-1, keepdims=True)
        lse = top + tf.math.log(tf.reduce_sum(tf.exp(shifted - top), axis=-1, keepdims=True))
        own = tf.reduce_sum(tf.where(_is(tokens, shifted), shifted, 0.0), axis=-1, keepdims=True)
        return tf.reduce_mean(lse - own), Kept(normed, scale_of(rows, self.epsilon), logits, lse)

    def _backward(self, dnats, kept: Kept, weights: Weights, tokens, more: int):
        """dx, of which the last `more` positions had no part in the loss, and the gradients of the weights."""
        dtype, product = kept.rows.dtype, self._map(weights, kept.rows.dtype)
        shifted = wide(kept.logits) + wide(product.bias)
        chances = tf.exp(shifted - kept.lse) - tf.cast(_is(tokens, shifted), tf.float32)
        dlogits = tf.cast(chances * (dnats / tf.cast(tf.size(tokens), tf.float32)), dtype)
        dnormed, folds = product.gradient(dlogits, kept.rows)
        dx = unflat(tf.cast(normal_gradient(wide(dnormed), wide(kept.rows), kept.scale), dtype), tokens)
        if more:
            dx = tf.pad(dx, [[0, 0], [0, more], [0, 0]])
        dkernel, dgamma, dbeta = unfolded(*weights, *folds)
        found = (dgamma, dbeta, dkernel)
        return [dx, *(tf.cast(d, own.dtype) for d, own in zip(found, weights))]

    @staticmethod
    def _map(weights: Weights, dtype):
        return folded(*weights, None, dtype)


def _is(tokens, logits) -> tf.Tensor:
    """[batch * time, count]: which logit is that of the token."""
    return tf.reshape(tokens, [-1, 1]) == tf.range(logits.shape[-1])
