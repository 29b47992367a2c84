"""One training step for one device, several, or several machines, written out because Keras's own will not do.

Keras 3.15's fit raises under MultiWorkerMirroredStrategy, and its optimizers clip before the all-reduce: here gradients
are summed over the replicas, unscaled, clipped by their global norm and applied (replica.py). The sum is in float32,
where the paper's is in float16 (section 5.6).
"""

from __future__ import annotations

import keras
import tensorflow as tf

from blocksparse.plan.checks import nearest_multiple

from . import flat
from .cluster import Cluster
from .config import Config
from .model import SparseTransformer
from .replica import Replica


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


class Trainer:
    """The model, a replica of its weights for each device, and the step that trains them under a strategy."""

    def __init__(self, config: Config, strategy: tf.distribute.Strategy):
        replicas = strategy.num_replicas_in_sync
        if config.batch % replicas:
            nearest = nearest_multiple(config.batch, replicas)
            raise ValueError(
                f"batch={config.batch} does not divide over {replicas} replicas; try --override batch={nearest}"
            )
        self.config = config
        self.strategy = strategy
        self.schedule = make_schedule(config)
        keras.utils.set_random_seed(config.seed)
        with tf.device("CPU"):  # its structure and its start; the weights that train are the replicas'
            self.model = SparseTransformer(config, shared=True)
            self.model.check_patterns()
        with (
            strategy.scope()
        ):  # hands the chief's values to all workers, whose processors may round otherwise
            start = {name: tf.Variable(vector) for name, vector in flat.pack(self.model).items()}
        local = [strategy.experimental_local_results(variable) for variable in start.values()]
        self.replicas = [Replica(config, dict(zip(flat.NAMES, each))) for each in zip(*local)]

    @property
    def variables(self) -> dict[str, keras.Variable]:
        """What the first of this worker's replicas keeps; the others' have the same values."""
        return self.replicas[0].variables

    def spread(self) -> None:
        """Gives the values of `variables` to this worker's other replicas."""
        for replica in self.replicas[1:]:
            for name, variable in replica.variables.items():
                variable.assign(self.variables[name].value)

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

    @tf.function
    def step(self, tokens, step):
        """Trains on one batch; returns its bits per token and the gradient's global norm before clipping."""
        loss, gradients = self.strategy.run(self._gradients, args=(tokens, step))
        local, rate = self.strategy.experimental_local_results, self.schedule(step)
        of_replicas = zip(*map(local, gradients), strict=True)
        norms = [replica.update(g, rate) for replica, g in zip(self.replicas, of_replicas, strict=True)]
        return local(loss)[0], norms[0]  # summed over the replicas: all have the same

    def spoilt(self, tokens, step) -> list[str]:
        """Of which weights this batch's gradient is not finite, in the order that the backward pass comes to them:
        what is first has spread to the others.
        """
        flags = zip(self.model.trainable_variables, self._finite(tokens, step), strict=True)
        return [variable.path.partition("/")[2] for variable, finite in reversed([*flags]) if not finite]

    @tf.function
    def _finite(self, tokens, step):
        """Whether the gradient of each weight is, in the model's order."""
        _, gradients = self.strategy.run(self._gradients, args=(tokens, step))
        own = [self.strategy.experimental_local_results(each)[0] for each in gradients]
        return [tf.reduce_all(tf.math.is_finite(part)) for part in flat.unpack(self.model, own)]

    def _gradients(self, tokens, step):
        """Of one replica's share of the batch; both results are summed over all replicas."""
        context = tf.distribute.get_replica_context()
        index = tf.get_static_value(context.replica_id_in_sync_group)
        replica = self.replicas[index % len(self.replicas)]
        weights = [v.value for v in replica.weights]
        with tf.GradientTape() as tape:
            # One cast for all matrices, not one for each use of each.
            half = [tf.cast(weights[0], self.model.compute_dtype), *weights[1:]]
            values = flat.unpack(self.model, half)
            with keras.StatelessScope(zip(self.model.trainable_variables, values, strict=True)):
                nats = self.model.nats(tokens, step, values)
            loss = nats / (tf.math.log(2.0) * context.num_replicas_in_sync)
            nats = replica.optimizer.scale_loss(nats / context.num_replicas_in_sync)
        # One call is one collective, after the backward pass. In buckets beside it, NCCL's kernels wait for the other
        # replicas on multiprocessors that the pass then lacks, which costs more than they hide.
        terms = [loss, *tape.gradient(nats, weights)]
        loss, *gradients = context.all_reduce(tf.distribute.ReduceOp.SUM, terms)
        return loss, gradients
