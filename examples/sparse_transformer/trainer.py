"""One training step for one device, several, or several machines, written out because Keras's own will not do.

Keras 3.15's fit raises under MultiWorkerMirroredStrategy, and its optimizers clip before the
all-reduce: here gradients are summed over the replicas, unscaled, clipped by their global norm, applied. The sum is in
float32, where the paper's is in float16 (section 5.6).
"""

from __future__ import annotations

import keras
import tensorflow as tf

from blocksparse.plan.checks import nearest_multiple

from . import flat
from .cluster import Cluster
from .config import Config
from .model import SparseTransformer


def make_strategy(cluster: Cluster | None) -> tf.distribute.Strategy:
    """Every machine of the cluster, else every GPU of this one, else the one device there is."""
    if cluster:
        several = tf.distribute.experimental.CommunicationImplementation
        way = several.NCCL if tf.config.list_physical_devices("GPU") else several.RING
        return tf.distribute.MultiWorkerMirroredStrategy(
            communication_options=tf.distribute.experimental.CommunicationOptions(implementation=way)
        )
    if len(tf.config.list_logical_devices("GPU")) > 1:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()


def make_schedule(config: Config) -> keras.optimizers.schedules.LearningRateSchedule:
    """Linear warm-up, then half a cosine to 0 (section 6)."""
    return keras.optimizers.schedules.CosineDecay(
        0.0,
        decay_steps=max(1, config.steps - config.warmup),
        warmup_target=config.learning_rate,
        warmup_steps=max(1, config.warmup),
    )


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


class Trainer:
    """Model, optimizer and the compiled step that joins them under a strategy."""

    def __init__(self, config: Config, strategy: tf.distribute.Strategy):
        replicas = strategy.num_replicas_in_sync
        if config.batch % replicas:
            nearest = nearest_multiple(config.batch, replicas)
            raise ValueError(
                f"batch={config.batch} does not divide over {replicas} replicas; try --override batch={nearest}"
            )
        self.config = config
        self.strategy = strategy
        keras.utils.set_random_seed(config.seed)
        with tf.device("CPU"):  # its structure and its start; the weights that train are below
            self.model = SparseTransformer(config, shared=True)
            self.model.check_patterns()
        with strategy.scope():
            self.weights = [
                keras.Variable(vector, name=name) for name, vector in flat.pack(self.model).items()
            ]
            self.optimizer = make_optimizer(config)
            self.schedule = make_schedule(config)
            self.optimizer.build(self.weights)

    @property
    def variables(self) -> dict[str, keras.Variable]:
        """Everything that training changes: weights, their averages, the optimizer's slots, the loss scale."""
        return {v.path: v for v in (*self.weights, *self.optimizer.variables)}

    @property
    def averages(self) -> list[tf.Tensor]:
        """The moving averages of the weights, as `logits` takes them."""
        return [tf.convert_to_tensor(self.variables[f"adam_w/{name}_average"].value) for name in flat.NAMES]

    def logits(self, tokens, *vectors):
        """The model's, with these weights."""
        of_model = zip(self.model.trainable_variables, flat.unpack(self.model, vectors), strict=True)
        with keras.StatelessScope(of_model):
            return self.model(tokens)

    @tf.function
    def total(self, number):
        """The sum of a float32 number over all replicas: the same on every worker."""

        def add():
            # On the replica's device: an argument of the graph is on none, and cannot be summed.
            mine = tf.identity(number)
            return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, mine)

        return self.strategy.experimental_local_results(self.strategy.run(add))[0]

    @property
    def scale(self):
        """The loss scale: a power of two under float16, else 1."""
        return getattr(self.optimizer, "dynamic_scale", tf.constant(1.0))

    @tf.function
    def step(self, tokens, step):
        """Trains on one batch; returns its bits per token and the gradient's global norm before clipping."""
        self.optimizer.learning_rate = self.schedule(step)
        loss, norm = self.strategy.run(self._replica_step, args=(tokens, step))
        local = self.strategy.experimental_local_results
        return local(loss)[0], local(norm)[0]  # summed over the replicas: all have the same

    def _replica_step(self, tokens, step):
        context = tf.distribute.get_replica_context()
        weights = [v.value for v in self.weights]
        with tf.GradientTape() as tape:
            # One cast for all matrices, not one for each use of each.
            half = [tf.cast(weights[0], self.model.compute_dtype), *weights[1:]]
            values = flat.unpack(self.model, half)
            with keras.StatelessScope(zip(self.model.trainable_variables, values, strict=True)):
                nats = self.model.nats(tokens, step, values)
            loss = nats / (tf.math.log(2.0) * context.num_replicas_in_sync)
            nats = self.optimizer.scale_loss(nats / context.num_replicas_in_sync)
        gradients = tape.gradient(nats, weights)
        gradients = context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        loss = context.all_reduce(tf.distribute.ReduceOp.SUM, loss)
        compiled = (
            self.config.xla and context.num_replicas_in_sync == 1
        )  # XLA has no part in what replicas sum
        update = tf.function(self._update, autograph=False, jit_compile=True) if compiled else self._update
        return loss, update(gradients)

    def _update(self, gradients):
        """Clips, and updates the weights; returns the norm before."""
        # Clipping at clip * scale is clipping after unscaling, to the bit: the scale is a power of two. The
        # optimizer divides by it, and leaves the weights alone and halves it where a gradient is not finite.
        gradients, norm = tf.clip_by_global_norm(gradients, self.config.clip * self.scale)
        # Keras sums over the replicas once more.
        replicas = tf.distribute.get_replica_context().num_replicas_in_sync
        self.optimizer.apply([g / replicas for g in gradients], self.weights)
        return norm / self.scale
