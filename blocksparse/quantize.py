"""Statistics of tensors, logged to a file while a graph runs."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import tensorflow as tf

from .tensors import TensorLike, as_float, as_float32, do_not_convert

COLUMNS = (
    "sat_pct",
    "ftz_pct",
    "max",
    "mean",
    "stdv",
    "mean+stdv5",
    "max_stat_lo",
    "max_stat_hi",
    "count",
    "name",
)
_started: dict[
    str, str
] = {}  # the time at which a log was begun, by its name before "%(timestamp)s" is filled in


@do_not_convert
def log_stats(
    x: TensorLike,
    step: TensorLike,
    sat_val: float = 65504.0,
    ftz_val: float = 2.0**-24,
    freq: int = 512,
    bfreq: int = 512,
    logfile: str = "",
    name: str | None = None,
) -> tf.Tensor:
    """x itself; appends a line of statistics to logfile at steps 1, 2, 4 .. freq and every freq steps from
    there.

    The columns are COLUMNS: per cent of entries that reach sat_val or fall below ftz_val without being 0,
    then the binary exponents of max |x|, mean |x|, its deviation, mean + 5 deviations and the least and
    greatest max so far, the step and the name. The gradient of x is logged likewise every bfreq steps. freq,
    bfreq: a power of 2, or 0: never. "%(timestamp)s" in logfile becomes the time of the first call; an
    existing file is overwritten.
    """
    for argument, value in (("freq", freq), ("bfreq", bfreq)):
        if not isinstance(value, (int, np.integer)) or value < 0 or value & (value - 1):
            raise ValueError(f"{argument} is {value}, but it is a power of 2, or 0 for never")
    path, name = _begin(logfile), name or "log_stats"

    @tf.custom_gradient
    def logged(x, step):
        def grad(dy):
            return _log(dy, step, sat_val, ftz_val, bfreq, path, name), None

        return _log(x, step, sat_val, ftz_val, freq, path, name), grad

    return logged(as_float("x", x), tf.cast(step, tf.int64))


def _begin(logfile: str) -> Path | None:
    if not logfile:
        return None
    first = logfile not in _started
    path = Path(logfile % {"timestamp": _started.setdefault(logfile, time.strftime("%Y_%m_%d_%H_%M_%S"))})
    if first:
        path.write_text("\t".join(COLUMNS) + "\n")
    return path


def _log(
    x: TensorLike, step: TensorLike, sat_val: float, ftz_val: float, freq: int, path: Path | None, name: str
) -> tf.Tensor:
    if not freq or path is None:
        return tf.identity(x)
    largest: list[float] = []

    def append(step, maximum, *numbers):
        largest.append(float(maximum))
        mean, deviation = numbers[2:]
        sizes = (maximum, mean, deviation, mean + 5 * deviation, min(largest), max(largest))
        largest[:] = [min(largest), max(largest)]
        with path.open("a") as log:
            print(
                *(f"{100 * n:.6f}" for n in numbers[:2]),
                *map(_exponent, sizes),
                step,
                name,
                sep="\t",
                file=log,
            )
        return np.int64(0)

    def write():
        size = tf.minimum(tf.abs(as_float32(x)), x.dtype.max)
        rates = [size >= sat_val, (size < ftz_val) & (size > 0)]
        mean = tf.reduce_mean(size)
        deviation = tf.sqrt(tf.reduce_mean(tf.square(size)) - tf.square(mean))
        numbers = [
            tf.reduce_max(size),
            *(tf.reduce_mean(as_float32(rate)) for rate in rates),
            mean,
            deviation,
        ]
        return tf.numpy_function(append, [step, *numbers], tf.int64, name=name)

    power = tf.equal(tf.bitwise.bitwise_and(step, step - 1), 0)
    due = tf.where(step < freq, power & (step > 0), tf.equal(step % freq, 0))
    with tf.control_dependencies([tf.cond(due, write, lambda: tf.zeros([], tf.int64))]):
        return tf.identity(x)


def _exponent(value: float) -> int:
    return math.frexp(value)[1] - 1 if math.isfinite(value) and value else 128 if value else -127
