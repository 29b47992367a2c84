"""Trains a run to its end from the step that its checkpoint holds."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import tensorflow as tf
from tqdm import tqdm

from blocksparse.fused.op import kernel_name

from . import checkpoint, device, origin, runs
from .batches import pipeline
from .command import WITHOUT_TRITON
from .config import Config, load, names
from .data import Source
from .evaluation import Score, Scorer, usual_limit
from .files import locked
from .log import Log
from .stopping import Stopping
from .trainer import Trainer, make_strategy
from .watchdog import Watchdog

SKIPS = 40  # steps in a row: they halve a loss scale of 2^15 to 2^-25, which no finite gradient needs
NAMED = 5  # weights


class Stop(ValueError):
    """Training cannot go on; the message says why."""


@dataclass(frozen=True)
class Job:
    """What train.py has read and checked: nothing of it was written yet."""

    settings: Config
    folder: Path
    origin: origin.Origin
    sources: dict[str, Source]  # train, valid, and test where it is scored at the end
    watchdog: Watchdog
    stopping: Stopping
    windows: int | None = None  # of test, spread over it; None: all


def train(job: Job, deterministic: bool = False) -> None:
    """Trains to the last step. A signal ends it before, with a checkpoint and status 128 + the signal's number."""
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    trainer = Trainer(
        job.settings, make_strategy(job.watchdog.cluster)
    )  # refuses patterns, before a folder is made
    job.stopping.install()
    with nullcontext() if job.watchdog.own else locked(job.folder):
        try:
            _train(job, trainer, job.watchdog)
        except tf.errors.OpError:
            job.watchdog.blame()
            raise


def _train(job: Job, trainer: Trainer, watchdog: Watchdog) -> None:
    start = checkpoint.restore(job.folder, trainer.variables)
    trainer.spread()
    if start > job.settings.steps:
        raise Stop(f"{job.folder} has done {start} steps already, more than steps={job.settings.steps}")
    _same_start(trainer, start)
    if watchdog.own:
        _steps(job, trainer, None, start)
        watchdog.follow()
        watchdog.close()
        return
    runs.write_config(job.folder, job.settings)
    origin.write(job.folder, job.origin)
    print(_description(job, trainer, start), flush=True)
    writer = _Writer(job, trainer, start)
    try:
        _steps(job, trainer, writer, start)
    finally:
        writer.checkpoints.close()  # while the folder is locked
    writer.close()
    device.write(job.folder, trainer.model.count_params(), job.settings.blocksparse)
    held_out = writer.score(usual_limit(job.settings.n_ctx))
    print(f"{job.folder}: {held_out} on held-out data (the split valid), with averaged weights", flush=True)
    if "test" in job.sources:
        found = writer.score(job.windows, "test")
        runs.write_json(job.folder / runs.SCORES, [found.row()])
        print(f"{job.folder}: {found} of test, likewise")
    watchdog.close()


class _Writer:
    """What the chief does beside training: it keeps rows and checkpoints, and scores held-out data."""

    def __init__(self, job: Job, trainer: Trainer, start: int):
        self.job, self.trainer = job, trainer
        self.scorer = Scorer(job.settings.n_ctx, trainer.logits)
        self.log = Log(job.folder, start)
        self.checkpoints = checkpoint.Writer(job.folder)

    def score(self, limit: int | None, split: str = "valid") -> Score:
        """The averaged weights over so many windows of a split."""
        job = self.job
        return self.scorer(job.sources[split], self.trainer.averages, limit=limit, batch=job.settings.batch)

    def note(self, step: int, bits: float, norm: float, seconds: float, stops: bool) -> None:
        """The step's row, and a checkpoint where one is due: first the rows it counts as done, then itself."""
        job, settings = self.job, self.job.settings
        rate = float(self.trainer.schedule(step))
        values = {"bits": bits, "gradient_norm": norm, "learning_rate": rate}
        due = (step + 1) % settings.checkpoint_every == 0 or step + 1 == settings.steps
        if due:
            job.watchdog.entered(step + 2)  # the other workers have entered it, and wait for this one
            values["valid_bits"] = self.score(_few(settings.n_ctx)).bits
        self._write(partial(self.log.add, step, seconds, **values))
        if due or stops:
            self._write(self.log.flush)
            self._write(self.checkpoints.save, step + 1, self.trainer.variables)
        if stops or step + 1 == settings.steps:
            self._write(self.checkpoints.wait)

    def close(self) -> None:
        self._write(self.log.close)

    def _write(self, what: Callable, *arguments) -> None:
        try:
            what(*arguments)
        except OSError as error:
            raise Stop(f"cannot write to {self.job.folder} ({error})") from error


def _steps(job: Job, trainer: Trainer, writer: _Writer | None, start: int) -> None:
    """All steps from `start` on. The chief has a writer."""
    settings, stopping = job.settings, job.stopping
    batches = iter(
        trainer.strategy.distribute_datasets_from_function(
            lambda context: pipeline(job.sources["train"], settings, start, context)
        )
    )
    stopping.patient, skipped = True, 0
    with tqdm(
        total=settings.steps, initial=start, unit="step", desc=settings.name, disable=not writer
    ) as bar:
        for step in range(start, settings.steps):
            job.watchdog.entered(step + 1)
            stopping.moment = f"in step {step + 1}; {job.folder} has the checkpoint before it"
            began = time.perf_counter()
            batch = next(batches), tf.constant(step, tf.int64)
            bits, norm = map(float, trainer.step(*batch))
            seconds = time.perf_counter() - began
            skipped = 0 if math.isfinite(norm) else skipped + 1
            if not math.isfinite(bits) or skipped >= _most_skips(settings):
                raise Stop(_not_finite(step, bits, norm, skipped, trainer.spoilt(*batch)))
            _show(bar, step - start, bits, seconds, settings)
            stops = _stops(job, trainer)
            if writer:
                writer.note(step, bits, norm, seconds, stops)
            if stops:
                bar.close()  # its last line comes before the one that says why
                _stop(job, step + 1)
    stopping.patient, stopping.moment = False, f"after its last step; {job.folder} is complete"


def _few(n_ctx: int) -> int:
    """Windows that are scored during training, at every checkpoint: an eighth of the usual ones."""
    return max(4, usual_limit(n_ctx) // 8)


def _stops(job: Job, trainer: Trainer) -> bool:
    """Whether training ends here: on a signal, to any of the workers, who agree on the step."""
    mine = job.stopping.signal is not None
    if job.watchdog.cluster is None:
        return mine
    return float(trainer.total(tf.constant(float(mine)))) > 0


def _stop(job: Job, done: int) -> None:
    if job.watchdog.own:
        job.watchdog.follow()  # until the chief has written the checkpoint
    job.watchdog.close()
    number = job.stopping.signal
    job.stopping.say(
        number, f"after step {done}; the same command goes on from there, {job.folder} has all of it"
    )
    sys.exit(128 + (number or signal.SIGTERM))


def _most_skips(settings: Config) -> int:
    """Under a loss scale an infinite gradient is ordinary: the step is skipped and the scale halved. Not so this many
    times in a row: then no weight would ever change again.
    """
    return SKIPS if settings.precision == "mixed_float16" else 1


def _not_finite(step: int, bits: float, norm: float, skipped: int, spoilt: list[str]) -> str:
    row = f", as in {skipped - 1} steps before it" if skipped > 1 else ""
    rest = f" and {len(spoilt) - NAMED} more" if len(spoilt) > NAMED else ""
    named = ", ".join(spoilt[:NAMED]) + rest or "none when computed again"
    return (
        f"the loss is {bits} and its gradient's norm {norm} at step {step}{row}; try a lower learning_rate"
        f"{_other_products(bool(tf.config.list_physical_devices('GPU')), os.environ.get('XLA_FLAGS', ''))}. Weights "
        f"whose gradients are not finite, from the loss on: {named}"
    )


def _other_products(gpu: bool, flags: str) -> str:
    """Advice where XLA may have chosen a product that is wrong."""
    if not gpu or WITHOUT_TRITON in flags:
        return ""
    return f", or add {WITHOUT_TRITON} to XLA_FLAGS (docs/howto/nan.md)"


def _same_start(trainer: Trainer, start: int) -> None:
    """Workers that resume from different checkpoints would train different models."""
    replicas = trainer.strategy.num_replicas_in_sync
    if replicas > 1 and float(trainer.total(tf.constant(float(start)))) != start * replicas:
        raise Stop(
            f"this worker resumes from step {start}, others do not; --out must be a folder that all share"
        )


def _show(bar: tqdm, done: int, bits: float, seconds: float, settings: Config) -> None:
    tokens = settings.batch * settings.n_ctx / seconds
    bar.set_postfix_str(f"{bits:.4f} bits per dim, {tokens:,.0f} tokens/s", refresh=False)
    bar.update()
    if done == 2 and not bar.disable and bar.n < settings.steps:  # the first step compiles
        left = (settings.steps - bar.n) * seconds
        bar.write(f"about {_duration(left)} to go, at {seconds:.3g} s a step", file=sys.stdout)


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds > 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(2, seconds):.0f} seconds"


def _description(job: Job, trainer: Trainer, start: int) -> str:
    """What runs, before it does."""
    settings = job.settings
    gpus = tf.config.list_physical_devices("GPU")
    where = (
        f"{trainer.strategy.num_replicas_in_sync} of {len(gpus)} GPUs"
        if gpus
        else f"CPU, {device.cores()} cores"
    )
    kernel = kernel_name() if settings.blocksparse else "dense"
    lines = [
        f"{settings.name}: {trainer.model.count_params():,} parameters on {where}; attention kernel: {kernel}",
        f"data: {job.origin}",
        f"run: {job.folder}, steps {start} to {settings.steps} of {settings.batch} x {settings.n_ctx:,} tokens",
    ]
    if not gpus and settings.precision != "float32":
        lines.append(
            f"warning: {settings.name} in {settings.precision} is meant for a GPU, and this is a CPU: a step may take "
            f"minutes. {_for_a_cpu(settings)} suits a CPU"
        )
    return "\n".join(lines)


def _for_a_cpu(settings: Config) -> str:
    """The configuration for the same data that a CPU trains, or this one in float32 if it is that itself."""
    small = [each for each in names() if each.endswith("_small") and load(each).data == settings.data]
    return "--override precision=float32" if settings.name in small or not small else small[0]
