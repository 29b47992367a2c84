"""What is asked of the tensors and of the scale that a BlocksparseTransformer is called with."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from ..tensors import TensorLike, times_scale

_DTYPES = (tf.float16, tf.bfloat16, tf.float32)


def scaled(x: tf.Tensor, scale: TensorLike) -> tuple[tf.Tensor, float]:
    """x and a number whose product is scale * x: a scale that is no number is multiplied in, to get its gradient."""
    if isinstance(scale, (int, float, np.number)) and not isinstance(scale, bool):
        return x, float(scale)
    if not tf.is_tensor(scale) and not isinstance(scale, (tf.Variable, np.ndarray)):
        raise TypeError(f"scale is {scale!r}; it has to be a number, or a scalar tensor or variable")
    factor = tf.convert_to_tensor(scale)
    if not factor.dtype.is_floating or factor.shape.rank not in (0, None):
        came = f"{factor.dtype.name} of shape {factor.shape}"
        raise ValueError(
            f"scale is {came}; it has to be a number, or a scalar tensor or variable of a float dtype"
        )
    return times_scale(tf.cast(x, tf.float32), tf.reshape(tf.cast(factor, tf.float32), [])), 1.0


def float_tensor(name: str, x: TensorLike) -> tf.Tensor:
    x = tf.convert_to_tensor(x)
    if x.dtype.base_dtype not in _DTYPES:
        raise TypeError(f"{name} is {x.dtype.name}; cast it to float16, bfloat16 or float32")
    return x


def check_equal(what: str, axis: int, **tensors: tf.Tensor) -> None:
    sizes = {name: x.shape.as_list()[axis] for name, x in tensors.items()}
    if len({size for size in sizes.values() if size is not None}) > 1:
        came = ", ".join(f"{name} has {size}" for name, size in sizes.items())
        raise ValueError(f"{came} as its {what}; give all of them the same")


def described(sizes: tuple[int, int, int]) -> str:
    return "{} heads, {} queries and {} keys".format(*sizes)


def key_number(autoregress_at_key: TensorLike, keys: int) -> tf.Tensor:
    """The number of one of so many keys, a scalar int32."""
    number = tf.convert_to_tensor(autoregress_at_key)
    if not number.dtype.is_integer or number.shape.rank not in (0, None):
        raise TypeError(
            f"autoregress_at_key is {autoregress_at_key!r}; it has to be an int or a scalar integer tensor"
        )
    known = tf.get_static_value(number)
    if known is not None and not 0 <= known < keys:
        raise ValueError(f"autoregress_at_key={known} is no key; it has to be 0 to {keys - 1}")
    return tf.reshape(tf.cast(number, tf.int32), [])
