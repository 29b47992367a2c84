"""Recomputation and gradients under OpenAI's names."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from .recomputation import decorate
from .tensors import TensorLike


def recomputable(function: Callable) -> Callable:
    """Decorator: `f(*args, recompute=True, **kwargs)` forgets what f computed inside, and computes it again when
    gradients are taken.

    recompute is False unless given; the results and gradients are the same either way, in every way of running, or
    an error says why not: blocksparse.recomputation has the contract. Under TensorFlow 1 graphs f may make variables
    by tf.get_variable. Nested use and methods work.

    Raises: ValueError, LookupError as sparse_attention.recomputable.
    """
    return decorate(function, makes_variables=True)


def gradients(
    ys: TensorLike,
    xs: TensorLike,
    grad_ys: TensorLike = None,
    stop_grads: TensorLike = None,
    group_aggregations: int = 8,
    custom_matmul_grad: bool = True,
) -> list[tf.Tensor | None]:
    """d(sum ys) / d(x) for each x, dense; None where ys do not depend on x. For TensorFlow 1 graphs;
    elsewhere take them from a tf.GradientTape. The last two arguments ordered OpenAI's kernels and change
    nothing here."""
    if tf.executing_eagerly():
        raise RuntimeError("gradients() needs a graph: with eager execution take them from a tf.GradientTape")
    found = tf.gradients(ys, xs, grad_ys=grad_ys, stop_gradients=stop_grads)
    return [None if dx is None else tf.convert_to_tensor(dx) for dx in found]
