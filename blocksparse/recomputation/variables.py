"""Variables by their handles, and what became of them since they were read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

# The public interface does not say what a variable's handle stands for.
from tensorflow.python.ops import handle_data_util

from .kinds import Refused


class Changed(ValueError):
    """A variable was updated between a recomputed function and its gradient, where its first value cannot be used."""

    __init__ = Exception.__init__  # what AutoGraph asks for, else it raises an error of its own instead

    @classmethod
    def of(cls, name: str | None, shape: tf.TensorShape) -> Changed:
        return cls(f"the variable {name or 'without a name'} of shape {shape} {CHANGED}")


CHANGED = (
    "was updated between a recomputed function and its gradient, and a tf.function inside reads it, or eagerly an "
    "operation on the variable itself, which would compute the gradient with the new value; take the gradient before "
    "the update, or read the variable (tf.convert_to_tensor) before and give that"
)


def _held(x: tf.Tensor) -> Any:
    """Shape and dtype of what the variable or list holds that x is the handle of; None where x is no such thing."""
    if x.dtype not in (tf.resource, tf.variant):
        return None
    data = handle_data_util.get_resource_handle_data(x) if tf.is_symbolic_tensor(x) else x._handle_data
    return data.shape_and_type[0] if data is not None and data.is_set and data.shape_and_type else None


def variable_dtype(x: tf.Tensor) -> tf.DType | None:
    """The dtype of the variable that x is the handle of; None where x is no such thing."""
    held = _held(x) if x.dtype == tf.resource else None
    return held and tf.as_dtype(held.dtype)


def refuse_list(x: tf.Tensor) -> None:
    """Raises Refused for a list of tensors that gradients go through: the step that leads to it has no zeros of its own
    kind to give."""
    held = _held(x) if x.dtype == tf.variant else None
    if held is not None and (tf.as_dtype(held.dtype).is_floating or tf.as_dtype(held.dtype).is_complex):
        raise Refused(
            "a recomputable function took a tf.TensorArray or another list of tensors from outside, whose gradient "
            "would be lost; give it as one tensor (its stack()) and unstack it inside"
        )


def value_of(handle: tf.Tensor) -> tf.Tensor:
    """What the variable holds now."""
    return tf.raw_ops.ReadVariableOp(resource=handle, dtype=variable_dtype(handle))


def same(first: tf.Tensor, now: tf.Tensor) -> tf.Tensor:
    """Whether two values are equal, NaN included: a bool tensor."""
    nan = tf.not_equal(first, first) & tf.not_equal(now, now)  # == compares objects under TensorFlow 1
    return tf.reduce_all(tf.equal(first, now) | nan)


def changed(first: tf.Tensor, read: Callable[[Any], tf.Tensor], handle: tf.Tensor) -> bool:
    """Whether a variable no longer holds its first value, eagerly."""
    return not bool(same(first, read(handle)))
