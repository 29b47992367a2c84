"""Trains a run to its end from the step that its checkpoint holds."""

from __future__ import annotations

import csv
import math
import time
from pathlib import Path

import tensorflow as tf
from tqdm import tqdm

from . import checkpoint, config, data
from .batches import pipeline
from .evaluation import load_model, mean_bits
from .trainer import Trainer, make_strategy
from .watchdog import Watchdog

# What tf.summary.scalar writes; that function itself wants TensorBoard installed.
SCALAR = tf.compat.v1.SummaryMetadata(plugin_data={"plugin_name": "scalars"})


class Stop(ValueError):
    """Training cannot go on; the message says why."""


class Log:
    """metrics.csv and TensorBoard's events, of the steps up to the checkpoint that training resumes from."""

    def __init__(self, folder: Path, start: int):
        path = folder / "metrics.csv"
        rows = [row for row in csv.reader(path.open()) if row[0].isdigit()] if path.exists() else []
        self.file = path.open("w", newline="")
        self.writer = csv.writer(self.file)
        self.writer.writerow(["step", "bits", "gradient_norm", "seconds"])
        self.writer.writerows(row for row in rows if int(row[0]) < start)
        self.events = tf.summary.create_file_writer(str(folder))

    def add(self, step: int, bits: float, norm: float, seconds: float) -> None:
        self.writer.writerow([step, repr(bits), repr(norm), f"{seconds:.4f}"])
        with self.events.as_default(step):
            tf.summary.write("bits", bits, metadata=SCALAR)
            tf.summary.write("gradient_norm", norm, metadata=SCALAR)

    def flush(self) -> None:
        self.file.flush()
        self.events.flush()


def check(step: int, bits: float, norm: float, scaled: bool) -> None:
    """Under a loss scale an infinite gradient is ordinary: the step is skipped and the scale halved."""
    if not math.isfinite(bits) or not (scaled or math.isfinite(norm)):
        raise Stop(
            f"the loss is {bits} and its gradient's norm {norm} at step {step}; try a lower learning_rate"
        )


def same_start(trainer: Trainer, start: int) -> None:
    """Workers that resume from different checkpoints would train different models."""

    @tf.function
    def total():
        context = tf.distribute.get_replica_context
        return trainer.strategy.run(
            lambda: context().all_reduce(tf.distribute.ReduceOp.SUM, tf.constant(float(start)))
        )

    mean = trainer.strategy.experimental_local_results(total())[0] / trainer.strategy.num_replicas_in_sync
    if float(mean) != start:
        raise Stop(
            f"this worker resumes from step {start}, others do not; --out must be a folder that all share"
        )


def train(settings: config.Config, data_path: str | None, folder: Path, deterministic: bool = False) -> None:
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    watchdog = Watchdog()
    strategy = make_strategy()
    chief = watchdog.own == 0
    source = data.load(settings, data_path)
    trainer = Trainer(settings, strategy)
    if chief:
        checkpoint.write_config(folder, settings)
    start = checkpoint.restore(folder, trainer.variables)
    same_start(trainer, start)
    log = Log(folder, start) if chief else None

    dataset = strategy.distribute_datasets_from_function(
        lambda context: pipeline(source, settings, start, context)
    )
    batches = iter(dataset)
    scaled = settings.precision == "mixed_float16"
    tokens = settings.batch * settings.n_ctx
    bar = tqdm(total=settings.steps, initial=start, unit="step", desc=settings.name, disable=not chief)
    for step in range(start, settings.steps):
        watchdog.entered(step + 1)
        began = time.perf_counter()
        bits, norm = map(float, trainer.step(next(batches), tf.constant(step, tf.int64)))
        seconds = time.perf_counter() - began
        check(step, bits, norm, scaled)
        bar.set_postfix_str(f"{bits:.4f} bits per dim, {tokens / seconds:,.0f} tokens/s", refresh=False)
        bar.update()
        if not chief:
            continue
        log.add(step, bits, norm, seconds)
        if (step + 1) % settings.checkpoint_every == 0 or step + 1 == settings.steps:
            try:
                log.flush()
                checkpoint.save(folder, step + 1, trainer.variables)
            except OSError as error:
                raise Stop(f"cannot write to {folder} ({error})") from error
    bar.close()
    if chief:
        held_out = mean_bits(load_model(folder), data.load(settings, data_path, "valid"), limit=4)
        print(f"{folder}: {held_out:.4f} bits per dim on held-out data, with averaged weights")
    else:
        watchdog.follow()
    watchdog.close()
