"""The update of a Keras model's weights, compiled as one program."""

from __future__ import annotations

import keras
import tensorflow as tf


def compile_update(model: keras.Model) -> keras.Model:
    """The model, whose optimizer is from now on compiled by XLA: one program for all weights, on one device.

    For `fit` where Keras does not compile the whole step (`compile(jit_compile=False)`): its optimizers run some thirty
    operations a weight one by one, which on a GPU takes longer than the backward pass of small models. Numbers agree
    to rounding. To be called after `compile`, and again after it or after a change of what is trainable.

    Raises: ValueError where the model has no weights yet, no optimizer, or is trained under a tf.distribute strategy.
    """
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None or not model.built:
        raise ValueError(
            f"{model.name} has {'no weights' if optimizer else 'no optimizer'}: build it and call compile(...) before "
            "compile_update"
        )
    if model.distribute_strategy and model.distribute_strategy.num_replicas_in_sync > 1:
        raise ValueError(f"{model.name} is trained on several devices, where an update is no one program")
    weights = list(model.trainable_variables)
    optimizer.build(weights)
    apply = type(optimizer).apply
    update = tf.function(
        lambda gradients: apply(optimizer, gradients, weights), jit_compile=True, autograph=False
    )

    def compiled(gradients, trainable_variables=None):
        own = weights if trainable_variables is None else list(trainable_variables)
        if [id(v) for v in own] != [id(v) for v in weights]:
            return apply(optimizer, gradients, own)
        return update(list(gradients))

    optimizer.apply = compiled
    return model
