"""The update of a Keras model's weights, compiled as one program."""

from __future__ import annotations

import keras
import tensorflow as tf


def compile_update(model: keras.Model) -> keras.Model:
    """The model, whose optimizer is from now on compiled by XLA: one program for all weights, on one device.

    For `fit` where Keras does not compile the whole step (`compile(jit_compile=False)`): its optimizers run some thirty
    operations a weight one by one, which on a GPU takes longer than the backward pass of small models. The condition
    of float16's LossScaleOptimizer, whether all gradients are finite, becomes a choice of each new value or the old
    one, for which the device waits for no host. Where Keras does compile the whole step there is nothing to gain.
    Numbers agree to rounding. To be called after `compile`, and again after it or after a change of what is trainable.

    Raises: ValueError where the model has no weights yet, no optimizer, or is trained under a tf.distribute strategy.
    """
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None or not model.built:
        raise ValueError(
            f"{model.name} has {'no weights' if optimizer else 'no optimizer'}: build it and call compile(...) before "
            "compile_update"
        )
    if getattr(model, "_distribute_strategy", None) or tf.distribute.has_strategy():
        strategy = type(model.distribute_strategy).__name__
        raise ValueError(
            f"{model.name} is trained under {strategy}, where an update is no one program; on one device leave the "
            "strategy out, on several compile_update"
        )
    weights = list(model.trainable_variables)
    if not optimizer.built:  # a LossScaleOptimizer built twice starts again, with second variables
        optimizer.build(weights)
    apply = type(optimizer).apply
    chooses = type(optimizer) is keras.optimizers.LossScaleOptimizer and not any(map(_replaced, weights))

    @tf.function(jit_compile=True, autograph=False)
    def update(gradients):
        if chooses:
            _apply_or_keep(optimizer, gradients, weights)
        else:
            apply(optimizer, gradients, weights)

    def compiled(gradients, trainable_variables=None):
        own = weights if trainable_variables is None else list(trainable_variables)
        if [id(v) for v in own] != [id(v) for v in weights]:
            return apply(optimizer, gradients, own)
        return update(list(gradients))

    optimizer.apply = compiled
    return model


def _replaced(weight: keras.Variable) -> bool:
    """Whether its gradient is its new value, as Keras has it for the scales of float8."""
    return getattr(weight, "overwrite_with_gradient", False)


def _apply_or_keep(optimizer: keras.optimizers.LossScaleOptimizer, gradients: list, weights: list) -> None:
    """The optimizer's update without a condition: computed whatever the gradients are, kept where all are finite."""
    inner, scale, count = optimizer.inner_optimizer, optimizer.dynamic_scale, optimizer.step_counter
    finite = optimizer.check_finite(gradients)
    held = [*inner.variables, *weights]
    before = [tf.convert_to_tensor(variable) for variable in held]
    inner.apply([None if each is None else keras.ops.divide(each, scale) for each in gradients], weights)
    for variable, old in zip(held, before, strict=True):
        variable.assign(tf.where(finite, tf.convert_to_tensor(variable), old))
    full = tf.equal(count, optimizer.dynamic_growth_steps - 1)
    scale.assign(scale * tf.where(finite, tf.where(full, 2.0, 1.0), 0.5))
    count.assign(tf.where(finite & ~full, count + 1, 0))
