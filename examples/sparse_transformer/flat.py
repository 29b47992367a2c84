"""All weights of a model as two vectors, those that decay and those that do not.

An optimizer of two variables updates them in a few large kernels and is traced in a second; with one for each matrix,
cifar10's 128 layers make it 2,054 variables, 50,000 small kernels and minutes.
"""

from __future__ import annotations

from math import prod

import keras
import tensorflow as tf

NAMES = ("decayed", "undecayed")
_UNDECAYED = ("bias", "gamma", "beta")


def _name(variable: keras.Variable) -> str:
    return NAMES[variable.name in _UNDECAYED]


def pack(model: keras.Model) -> dict[str, tf.Tensor]:
    """The model's weights by name of the vector."""
    members: dict[str, list] = {name: [] for name in NAMES}
    for variable in model.trainable_variables:
        members[_name(variable)].append(tf.reshape(variable.value, [-1]))
    return {name: tf.concat(parts, axis=0) for name, parts in members.items()}


def unpack(model: keras.Model, vectors) -> list[tf.Tensor]:
    """The vectors, in the order of NAMES, as tensors in the order and shapes of model.trainable_variables."""
    parts = {}
    for name, vector in zip(NAMES, vectors, strict=True):
        sizes = [prod(variable.shape) for variable in model.trainable_variables if _name(variable) == name]
        parts[name] = iter(tf.split(vector, sizes))
    return [
        tf.reshape(next(parts[_name(variable)]), variable.shape) for variable in model.trainable_variables
    ]
