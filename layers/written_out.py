"""The residual block of section 5.2 written out: its forward pass, and its gradient from what the forward pass kept.

    h = x + drop(attend(norm1(x)) W_p + b_p),    y = h + drop(gelu(norm2(h) W_e + b_e) W_c + b_c)

TensorFlow's own gradient keeps some forty tensors of a block's width, and runs attention twice where it is recomputed.
Here each setting of `recompute` keeps a number of them, in units of x:

    none         6 + 2 ff_ratio: both norms, attention's output, q, k, v, pre-activation, activation; nothing runs again
    selective    2: x, attention's output; all products but the last, both norms and the activation run again
    whole        1: x; all but the last product runs again

Products and stored tensors are of the compute dtype; norms, activation, dropout and every sum are float32, in between.
Between two products the time goes into bytes, so that fewer passes over rows are what counts:

- gamma and beta go into the maps behind a norm, which are small: (n gamma + beta) W + b = n (gamma W) + (beta W + b).
  Their gradients then come from the map's, and no pass over the rows is made for them.
- Nor for two of the four constants around attention: that of the keys cancels in the softmax, that of the values goes
  around it into the projection's.
- A tensor that has to be rounded and stored anyway is stored once (`stored`): left to itself, XLA keeps a second one
  in float32, or computes all that led to it again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from .dropout import dropout
from .rows import (
    apart,
    flat,
    gelu,
    in_turn,
    normal,
    normal_and_scale,
    normal_gradient,
    scale_of,
    slope,
    stored,
    unflat,
    wide,
)

RECOMPUTE = ("none", "selective", "whole")


class Weights(NamedTuple):
    """In the order of a SparseTransformerBlock's weights. Matrices [in, out] may be of the compute dtype already."""

    gamma1: Any
    beta1: Any
    query: Any
    query_bias: Any
    key: Any
    key_bias: Any
    value: Any
    value_bias: Any
    project: Any
    project_bias: Any
    gamma2: Any
    beta2: Any
    expand: Any
    expand_bias: Any
    contract: Any
    contract_bias: Any

    def attention_maps(self, dtype, carried: bool) -> list[Map]:
        """Those of queries, keys and values behind the first norm; carried: without the values' constant.

        A constant of the keys adds one number to all scores of a query, which softmax does not see: they have none.
        """
        query, key, value = (self._folded(0, at, dtype) for at in (2, 4, 6))
        return [query, Map(key.kernel, None), Map(value.kernel, None) if carried else value]

    def projection(self, dtype, carried: bool) -> Map:
        """carried: with the values' constant, which attention hands on as it is, weights of a row adding up to 1."""
        bias = wide(self.project_bias)
        if carried:
            bias += _times(self._constant(0, 6), self.project)
        return Map(tf.cast(self.project, dtype), tf.cast(bias, dtype))

    def expansion(self, dtype) -> Map:
        """Behind the second norm."""
        return self._folded(10, 12, dtype)

    def contraction(self, dtype) -> Map:
        return Map(tf.cast(self.contract, dtype), tf.cast(self.contract_bias, dtype))

    def carry_back(self, dkernel, dbias) -> tuple:
        """The gradients of the projection's kernel, and of the values' constant, given those of `projection`."""
        constant = self._constant(0, 6)
        return wide(dkernel) + constant[:, None] * dbias, tf.linalg.matvec(wide(self.project), dbias)

    def _constant(self, norm: int, at: int) -> tf.Tensor:
        return _times(self[norm + 1], self[at]) + wide(self[at + 1])

    def _folded(self, norm: int, at: int, dtype) -> Map:
        return folded(*self[norm : norm + 2], *self[at : at + 2], dtype)

    def unfold(self, norm: int, gradients: list) -> tuple[list, tuple]:
        """The gradients of the maps behind a norm, and those of its gamma and beta, given those of the folded maps."""
        maps, dgamma, dbeta = [], 0.0, 0.0
        for at, (dkernel, dbias) in zip(range(norm + 2, norm + 8, 2), gradients):
            dbias = tf.zeros_like(wide(self[at + 1])) if dbias is None else dbias
            own, *of_norm = unfolded(*self[norm : norm + 2], self[at], dkernel, dbias)
            maps += [own, dbias]
            dgamma, dbeta = dgamma + of_norm[0], dbeta + of_norm[1]
        return maps, (dgamma, dbeta)


def folded(gamma, beta, kernel, bias, dtype) -> Map:
    """The map of normed rows that stands for n -> (n gamma + beta) W + b; bias None is none."""
    constant = _times(beta, kernel)
    if bias is not None:
        constant += wide(bias)
    return Map(tf.cast(wide(gamma)[:, None] * wide(kernel), dtype), tf.cast(constant, dtype))


def unfolded(gamma, beta, kernel, dkernel, dbias) -> tuple:
    """The gradients of W, gamma and beta, given those of the folded map's two."""
    kernel, dkernel = wide(kernel), wide(dkernel)
    own = wide(gamma)[:, None] * dkernel + wide(beta)[:, None] * dbias
    return own, tf.reduce_sum(kernel * dkernel, axis=1), tf.reduce_sum(kernel * dbias, axis=1)


def _times(vector: tf.Tensor, matrix: tf.Tensor) -> tf.Tensor:
    """vector W, float32."""
    return tf.reduce_sum(wide(vector)[:, None] * wide(matrix), axis=0)


class Map(NamedTuple):
    """x W + b, both of x's dtype, summed in float32 inside the product. bias None adds nothing, and has no gradient."""

    kernel: tf.Tensor
    bias: tf.Tensor | None

    def of(self, rows: tf.Tensor) -> tf.Tensor:
        product = tf.matmul(rows, self.kernel)
        return product if self.bias is None else product + self.bias

    def gradient(self, d: tf.Tensor, rows: tf.Tensor) -> tuple[tf.Tensor, tuple[tf.Tensor, tf.Tensor | None]]:
        """The rows' gradient, and (dW of W's dtype, db in float32)."""
        dbias = None if self.bias is None else tf.reduce_sum(wide(d), axis=0)
        return self.rows_gradient(d), (self.kernel_gradient(d, rows), dbias)

    def rows_gradient(self, d: tf.Tensor) -> tf.Tensor:
        return tf.matmul(d, self.kernel, transpose_b=True)

    @staticmethod
    def kernel_gradient(d: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        return tf.matmul(rows, d, transpose_a=True)


class Kept(NamedTuple):
    """What a forward pass leaves for the gradient: rows [batch * time, width] of the compute dtype, or None.

    lse: attention's log-sum-exp, float32 [batch, heads, time], or None where the attention has none. raw: the
    feed-forward's first product, without its bias. normed, scale: of each norm, what `normal` makes, and 1 / deviation,
    float32 [batch * time, 1].
    """

    x: Any
    h: Any = None
    attended: Any = None
    lse: Any = None
    query: Any = None
    key: Any = None
    value: Any = None
    raw: Any = None
    active: Any = None
    normed1: Any = None
    scale1: Any = None
    normed2: Any = None
    scale2: Any = None

    def operands(self) -> tuple:
        """What attention takes."""
        return self.query, self.key, self.value


class Attention(NamedTuple):
    """forward(q, k, v) -> (out, lse or None); gradient(q, k, v, out, lse, dout) -> (dq, dk, dv).

    full: no query sees nothing, so that what all values have in common comes out of it as it went in.
    """

    forward: Callable
    gradient: Callable
    full: bool = False


class Block(NamedTuple):
    """What a block is besides its weights.

    keys: uint32 [2, batch, 2], for each branch and batch row what `dropout` takes; None drops nothing.
    """

    attention: Attention
    epsilon: float
    recompute: str
    rate: float
    keys: Any

    def forward(self, weights: Weights, x: tf.Tensor) -> tuple[tf.Tensor, Kept]:
        """y [batch, time, width] of x's dtype, and what `gradient` needs besides dy."""
        kept = self._computed(weights, x)
        y = unflat(self._add(kept.h, weights.contraction(x.dtype).of(kept.active), 1), x)
        if self.recompute == "none":
            scales = dict(scale1=scale_of(flat(x), self.epsilon), scale2=scale_of(kept.h, self.epsilon))
            return y, kept._replace(x=None, h=None, **scales)
        return y, Kept(x) if self.recompute == "whole" else Kept(x, attended=kept.attended, lse=kept.lse)

    def _computed(self, weights: Weights, x: tf.Tensor) -> Kept:
        """The block up to the activation."""
        kept = self._attention_operands(weights, Kept(x))
        attended, lse = self.attention.forward(*(unflat(t, x) for t in kept.operands()))
        return self._after_attention(weights, kept._replace(attended=flat(attended), lse=lse))

    def _attention_operands(self, weights: Weights, kept: Kept) -> Kept:
        """kept, with what is computed from x up to the attention."""
        normed = normal(flat(kept.x), self.epsilon)
        maps = weights.attention_maps(normed.dtype, self._carried(weights))
        q, k, v = (each.of(rows) for each, rows in zip(maps, apart(normed, 3)))
        return kept._replace(query=q, key=k, value=v, normed1=normed)

    def _after_attention(self, weights: Weights, kept: Kept) -> Kept:
        """kept, with what is computed from x and attention's output up to the activation."""
        dtype = kept.x.dtype
        branch = weights.projection(dtype, self._carried(weights)).of(kept.attended)
        h = stored(self._add(flat(kept.x), branch, 0))
        normed, expansion = normal(h, self.epsilon), weights.expansion(dtype)
        raw = Map(expansion.kernel, None).of(normed)
        active = tf.cast(gelu(wide(raw) + wide(expansion.bias)), raw.dtype)
        return kept._replace(h=h, raw=raw, active=active, normed2=normed)

    def _carried(self, weights: Weights) -> bool:
        """Whether the values' constant takes the way around attention: each value has one reader, and all rows keys."""
        return self.attention.full and weights.value.shape[1] == weights.project.shape[0]

    def gradient(self, dy: tf.Tensor, kept: Kept, weights: Weights) -> tuple[tf.Tensor, Weights]:
        """dx, and the gradients of the weights, each of its weight's dtype."""
        if kept.attended is None:
            kept = self._computed(weights, kept.x)
        if kept.raw is None:
            kept = self._after_attention(weights, kept)
        dh, feed_forward = self._feed_forward_gradient(flat(dy), kept, weights)
        if kept.query is None:
            kept = self._attention_operands(weights, kept)
        dx, of_attention = self._attention_gradient(dh, kept, weights, like=dy)
        dx = unflat(tf.cast(wide(dh) + dx, dy.dtype), dy)
        gradients = Weights(*of_attention, *feed_forward)
        return dx, Weights(*(tf.cast(d, own.dtype) for d, own in zip(gradients, weights)))

    def _attention_gradient(self, dh, kept: Kept, weights: Weights, like):
        """Of x through the branch, float32, and of gamma1, beta1 and the four maps; like: of x's shape."""
        carried = self._carried(weights)
        projection = weights.projection(dh.dtype, carried)
        dattended, (dproject, dbias) = projection.gradient(self._drop(dh, 0), kept.attended)
        operands = (unflat(t, like) for t in (*kept.operands(), kept.attended))
        dqkv = self.attention.gradient(*operands, kept.lse, unflat(dattended, like))
        maps = weights.attention_maps(dh.dtype, carried)
        rows = apart(kept.normed1, 3)
        found = [each.gradient(flat(d), own) for each, d, own in zip(maps, dqkv, rows)]
        of_maps = [d for _, d in found]
        if carried:
            dproject, dconstant = weights.carry_back(dproject, dbias)
            of_maps[2] = of_maps[2][0], dconstant
        dmaps, dnorm = weights.unfold(0, of_maps)
        normed = self._normed(kept.x, kept.normed1, kept.scale1)
        dx = normal_gradient(sum(wide(d) for d, _ in found), *normed)
        return dx, (*dnorm, *dmaps, dproject, dbias)

    def _feed_forward_gradient(self, dy, kept: Kept, weights: Weights):
        """dh, and the gradients of gamma2, beta2 and the two maps."""
        dtype, expansion, contraction = dy.dtype, weights.expansion(dy.dtype), weights.contraction(dy.dtype)
        d = self._drop(dy, 1)
        dbias = tf.reduce_sum(wide(d), axis=0)
        d, dkernel = in_turn(d, lambda d: contraction.kernel_gradient(d, kept.active))
        dactive = contraction.rows_gradient(d)
        dexpanded = stored(tf.cast(wide(dactive) * slope(wide(kept.raw) + wide(expansion.bias)), dtype))
        dnormed, dexpand = expansion.gradient(dexpanded, kept.normed2)
        dmap, dnorm = weights.unfold(10, [dexpand])
        dnormed = normal_gradient(wide(dnormed), *self._normed(kept.h, kept.normed2, kept.scale2))
        dh = stored(tf.cast(wide(dy) + dnormed, dtype))
        return dh, (*dnorm, *dmap, dkernel, dbias)

    def _normed(self, rows, normed, scale):
        """Both in float32, as kept, or of the rows that were."""
        return normal_and_scale(flat(rows), self.epsilon) if scale is None else (wide(normed), scale)

    def _add(self, rows, branch_rows, branch: int):
        return tf.cast(wide(rows) + wide(self._drop(branch_rows, branch)), rows.dtype)

    def _drop(self, rows, branch: int):
        return rows if self.keys is None else dropout(rows, self.rate, self.keys[branch])
