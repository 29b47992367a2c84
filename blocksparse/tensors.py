"""Small TensorFlow helpers that several modules share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf

TensorLike = Any  # tensor, variable, array or number
_Function = TypeVar("_Function", bound=Callable)


def do_not_convert(function: _Function) -> _Function:
    """AutoGraph would rewrite the planner too, for seconds: for what does not branch on the value of a tensor."""
    return tf.autograph.experimental.do_not_convert(function)  # without types: readers would see no signature


def as_bool(x: np.ndarray) -> tf.Tensor:
    """A tensor of a bool array. A graph's bool constants are made element by element in Python, bytes at once."""
    return tf.cast(x.view(np.uint8), tf.bool)


def as_float32(x: TensorLike) -> tf.Tensor:
    """x as a float32 tensor."""
    return tf.cast(tf.convert_to_tensor(x), tf.float32)


def as_tensor(name: str, x: TensorLike) -> tf.Tensor:
    """x as a tensor. Raises TypeError for what is none: a sparse or ragged tensor, None, an object."""
    try:
        return tf.convert_to_tensor(x)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name} is of type {type(x).__name__}; give a dense tensor, an array or a number"
        ) from error


def as_numbers(name: str, x: TensorLike) -> tf.Tensor:
    """x as a float32 tensor. Raises TypeError where it holds no real numbers."""
    x = as_tensor(name, x)
    if not (x.dtype.base_dtype.is_floating or x.dtype.base_dtype.is_integer or x.dtype.base_dtype.is_bool):
        raise TypeError(f"{name} is {x.dtype.name}; it has to hold real numbers")
    return tf.cast(x, tf.float32)


def as_scale(scale: TensorLike) -> tf.Tensor:
    """A scale as a float32 tensor. Raises where it is no number and no scalar tensor: it would spread over x's axes."""
    scale = as_numbers("scale", scale)
    if scale.shape.rank not in (0, None):
        raise ValueError(f"scale is {scale.shape}; it has to be a number or a scalar tensor")
    return scale


@tf.custom_gradient
def times_scale(x: tf.Tensor, scale: tf.Tensor) -> Any:
    """x * scale, of float32 tensors, the scale a scalar. Where no gradient comes in, x has no part in that of scale:
    there it may be a NaN that nobody sees.
    """

    def gradient(dy):
        return dy * scale, tf.reduce_sum(tf.math.multiply_no_nan(x, dy))

    return x * scale, gradient


def as_float(name: str, x: TensorLike) -> tf.Tensor:
    """x as a tensor. Raises TypeError where it is of no float dtype: results would be rounded to whole numbers."""
    x = as_tensor(name, x)
    if not x.dtype.base_dtype.is_floating:
        raise TypeError(f"{name} is {x.dtype.name}; cast it to float32, float16 or bfloat16")
    return x


def as_indices(name: str, x: TensorLike) -> tf.Tensor:
    """x as a tensor of int32, or of int64 where its dtype holds more: cut to int32, 2^32 + 1 would silently become 1.

    Raises TypeError where it holds no integers: 1.5 would silently become 1.
    """
    x = as_tensor(name, x)
    if not x.dtype.base_dtype.is_integer:
        raise TypeError(f"{name} is {x.dtype.name}; cast it to int32")
    if x.dtype.base_dtype == tf.uint64:  # what int64 does not hold would turn negative
        x = tf.minimum(x, tf.constant(tf.int64.max, tf.uint64))
    return tf.cast(x, tf.int32 if x.dtype.max <= tf.int32.max else tf.int64)


def as_list(xs: Any) -> list:
    """The tensors or variables of an iterable; one by itself is a list of one."""
    return [xs] if tf.is_tensor(xs) else list(xs)


def as_variable(x: Any) -> Any:
    """x; of a variable of Keras's the one of TensorFlow's that holds its value."""
    value = getattr(x, "value", None)
    return value if isinstance(value, tf.Variable) else x


def check_rank(name: str, x: tf.Tensor, axes: str, rank: int) -> None:
    """Raises ValueError where x has not as many axes as the text `axes` describes."""
    if x.shape.rank not in (rank, None):
        raise ValueError(f"{name} is {x.shape}; it has to be {axes}")


def check_axis(axis: int, x: tf.Tensor) -> int:
    """axis counted from the front. Raises ValueError where x has none of that number, or no known rank."""
    rank = x.shape.rank
    if isinstance(axis, bool) or not isinstance(axis, (int, np.integer)):
        raise TypeError(f"axis is {axis!r}; it has to be an int")
    if rank is None:
        raise ValueError(
            f"axis is {axis}, but x has no known rank to count it in: give x one, tf.ensure_shape(x, [None, ...])"
        )
    if not -rank <= axis < rank:
        raise ValueError(f"axis is {axis}, but x is {x.shape}: axis lies in {-rank} .. {rank - 1}")
    return axis % rank


def same_float32(compute: Any, x: tf.Tensor, *more: tf.Tensor) -> tf.Tensor:
    """compute(x, *more) in float32, rounded once, to x's dtype."""
    return tf.cast(compute(*map(as_float32, (x, *more))), x.dtype)


def register_gradient(op_type: str) -> Callable[[Callable], Callable]:
    """tf.RegisterGradient for modules that are imported again, as notebooks do: it refuses a second function.

    What is registered calls the newest import's function of the same name, for graphs built before as well.
    """

    def register(function: Callable) -> Callable:
        def newest(op, *dys):
            return getattr(sys.modules.get(function.__module__), function.__name__, function)(op, *dys)

        with suppress(KeyError):  # registered by an earlier import
            tf.RegisterGradient(op_type)(newest)
        return function

    return register
