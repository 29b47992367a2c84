"""Softmax, cross entropy, top-k and transposes, in plain TensorFlow. Sums run in float32; results have x's
dtype."""

from __future__ import annotations

import operator

import tensorflow as tf

from ..tensors import (
    TensorLike,
    as_float,
    as_float32,
    as_indices,
    as_numbers,
    as_scale,
    check_rank,
    times_scale,
)

LOWEST = tf.float32.min  # stands for -infinity, whose differences would be NaN


def softmax(x: TensorLike, scale: TensorLike = 1.0, bench: int = 0) -> tf.Tensor:
    """exp(scale * x) / sum(exp(scale * x)) over the last axis."""
    return masked_softmax(x, scale=scale)


def masked_softmax(
    x: TensorLike, mask: TensorLike | None = None, scale: TensorLike = 1.0, bench: int = 0
) -> tf.Tensor:
    """Softmax of mask * scale * x over the last axis, among the entries whose mask is not 0; the others give
    0.

    mask: numbers, with as many axes as x, each of x's size or 1; it gets no gradient. A row without a visible
    entry gives zeros and zero gradients.
    """
    x, visible, scores = _scores(x, mask, scale)
    return _softmax_among(visible, scores, x.dtype)


def masked_top_k_softmax(
    x: TensorLike, k: int, mask: TensorLike | None = None, scale: TensorLike = 1.0
) -> tf.Tensor:
    """masked_softmax among the k largest scores of each row only; of equal ones, those of lower index are
    in."""
    x, visible, scores = _scores(_check_k(k, x), mask, scale)
    largest = _largest(scores, k)
    return _softmax_among(largest if visible is None else largest & visible, scores, x.dtype)


def _scores(
    x: TensorLike, mask: TensorLike | None, scale: TensorLike
) -> tuple[tf.Tensor, tf.Tensor | None, tf.Tensor]:
    """x; the visible entries (None: all); float32 scores, the lowest number where invisible."""
    x = _rows("x", x)
    scores = times_scale(as_float32(x), tf.reshape(as_scale(scale), []))
    if mask is None:
        return x, None, scores
    mask = tf.stop_gradient(as_numbers("mask", mask))
    if not _broadcasts(mask.shape, x.shape):
        raise ValueError(
            f"mask is {mask.shape}, but x is {x.shape}: as many axes, each of x's size or 1, are wanted"
        )
    visible = tf.broadcast_to(tf.not_equal(mask, 0.0), tf.shape(x))
    return x, visible, tf.where(visible, scores * mask, LOWEST)


def _broadcasts(mask: tf.TensorShape, x: tf.TensorShape) -> bool:
    if mask.rank is None or x.rank is None:
        return True
    sizes = zip(mask.as_list(), x.as_list())
    return mask.rank == x.rank and all(m in (1, n) or None in (m, n) for m, n in sizes)


def _softmax_among(visible: tf.Tensor | None, scores: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    if visible is None:
        return tf.cast(tf.nn.softmax(scores), dtype)
    weights = tf.nn.softmax(tf.where(visible, scores, LOWEST))
    return tf.cast(tf.where(visible, weights, 0.0), dtype)


def softmax_cross_entropy(logits: TensorLike, labels: TensorLike) -> tf.Tensor:
    """-log softmax(logits)[label], float32, one for each row: logits [..., classes], as many integer labels
    as rows.

    The labels may have any shape of that many entries; the loss has that of logits without the last axis.
    """
    logits, labels = _rows("logits", logits), as_indices("labels", labels)
    rows, entries = logits.shape[:-1].num_elements(), labels.shape.num_elements()
    if None not in (rows, entries) and rows != entries:
        raise ValueError(f"labels is {labels.shape}, but logits is {logits.shape}: {rows} labels are wanted")
    labels = tf.reshape(labels, tf.shape(logits)[:-1])
    loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=as_float32(logits))
    return tf.ensure_shape(loss, logits.shape[:-1])


def top_k(x: TensorLike, k: int) -> tuple[tf.Tensor, tf.Tensor]:
    """(values, indices) of the k largest entries of each row, largest first, each [..., k]."""
    return tuple(tf.math.top_k(_check_k(k, x), k))


def rectified_top_k(x: TensorLike, k: int, rebase: bool = True) -> tf.Tensor:
    """max(x, base) - base where x is among its row's k largest, 0 elsewhere; base = max(k-th largest, 0), or
    0 without rebase. The gradient is relu's: it passes where the result is positive."""
    x = _check_k(k, x)
    y = as_float32(x)
    base = tf.nn.relu(tf.math.top_k(y, k).values[..., -1:]) if rebase else 0.0
    kept = tf.where(_largest(y, k), tf.nn.relu(y - tf.stop_gradient(base)), 0.0)
    return tf.cast(kept, x.dtype)


def _largest(x: tf.Tensor, k: int) -> tf.Tensor:
    """True for exactly k entries of each row, the largest."""
    chosen = tf.reshape(tf.math.top_k(x, k).indices, [-1, k])
    rows = tf.broadcast_to(tf.range(tf.shape(chosen)[0])[:, tf.newaxis], tf.shape(chosen))
    shape = [tf.shape(chosen)[0], tf.shape(x)[-1]]
    ones = tf.scatter_nd(tf.stack([rows, chosen], axis=-1), tf.ones_like(chosen), shape)
    return tf.reshape(ones, tf.shape(x)) > 0


def _check_k(k: int, x: TensorLike) -> tf.Tensor:
    """x as a tensor, whose rows have k entries or more."""
    x = _rows("x", x)
    try:
        operator.index(k)
    except TypeError as error:
        raise TypeError(f"k is {k!r}; it has to be an int") from error
    size = x.shape[-1:].num_elements()
    if k < 1 or (size is not None and k > size):
        raise ValueError(f"k is {k}, but rows of x ({x.shape}) have {size} entries: k lies in 1 .. {size}")
    return x


def _rows(name: str, x: TensorLike) -> tf.Tensor:
    """x as a float tensor that has a last axis."""
    x = as_float(name, x)
    if x.shape.rank == 0:
        raise ValueError(f"{name} is a scalar; it has to have one axis or more")
    return x


def transpose_2d(x: TensorLike) -> tf.Tensor:
    """x^T for a matrix x."""
    x = tf.convert_to_tensor(x)
    check_rank("x", x, "a matrix", 2)
    return tf.transpose(x, [1, 0])


def transpose_0213(x: TensorLike) -> tf.Tensor:
    """Exchanges the two middle axes of four: [batch, time, heads, head_dim] <-> [batch, heads, time,
    head_dim]."""
    x = tf.convert_to_tensor(x)
    check_rank("x", x, "of four axes", 4)
    return tf.transpose(x, [0, 2, 1, 3])
