"""What one device keeps of a training: the weights, and the optimizer that updates them.

Every device updates a copy of its own with the same summed gradient, so that the copies stay equal. Keras would sum the
gradient over the devices a second time, and keep the update out of XLA; variables that tf.distribute does not know
spare both.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from .config import Config


def make_optimizer(config: Config) -> keras.optimizers.Optimizer:
    """AdamW with a moving average of the weights (section 6); its learning rate is set at every step."""
    optimizer = keras.optimizers.AdamW(
        0.0,
        name="adam_w",  # not numbered: checkpoints hold variables by name
        weight_decay=config.weight_decay,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-8,
        use_ema=True,
        ema_momentum=config.average,
    )
    optimizer.exclude_from_weight_decay(var_names=["undecayed"])
    if config.precision == "mixed_float16":
        return keras.optimizers.LossScaleOptimizer(optimizer, name="loss_scale")
    return optimizer


class Replica:
    """Weights (flat.NAMES) and optimizer on the device that `start`, the first values by name, are on."""

    def __init__(self, config: Config, start: dict[str, tf.Variable]):
        self.config = config
        self.device = next(iter(start.values())).device
        with tf.device(self.device):
            self.weights = [
                keras.Variable(tf.convert_to_tensor(value), name=name) for name, value in start.items()
            ]
            self.optimizer = make_optimizer(config)
            self.optimizer.build(self.weights)
        # Compiled, the update reads and writes the weights once, not once for every operation of it.
        self._compiled = tf.function(self._update, autograph=False, jit_compile=config.xla or None)

    @property
    def variables(self) -> dict[str, keras.Variable]:
        """Everything that training changes: weights, their averages, the optimizer's slots, the loss scale."""
        return {v.path: v for v in (*self.weights, *self.optimizer.variables)}

    @property
    def scale(self):
        """The loss scale: a power of two under float16, else 1."""
        return getattr(self.optimizer, "dynamic_scale", tf.constant(1.0))

    def update(self, gradients, rate):
        """Clips the gradient of the scaled loss, updates the weights; returns its norm before, without the scale."""
        with tf.device(self.device):
            self.optimizer.learning_rate = rate
            return self._compiled(gradients)

    def _update(self, gradients):
        # Clipping at clip * scale is clipping after unscaling, to the bit: the scale is a power of two. The
        # optimizer divides by it, and leaves the weights alone and halves it where a gradient is not finite.
        gradients, norm = tf.clip_by_global_norm(gradients, self.config.clip * self.scale)
        self.optimizer.apply(gradients, self.weights)
        return norm / self.scale
