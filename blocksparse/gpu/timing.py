"""Device time of TensorFlow code: events on the GPU's own stream, which TensorFlow has no interface for."""

from __future__ import annotations

import ctypes
import statistics
from collections.abc import Callable

import tensorflow as tf

from .. import backends

CACHE = 256 << 20  # bytes cleared before each run: more than the L2 cache of any GPU


def device_times(step: Callable, inputs: tuple, repeats: int = 20) -> list[float]:
    """Milliseconds that the GPU takes for step(*inputs), `repeats` times, caches flushed before each.

    step: maps tensors to a tensor or a nest of them; it is traced once. inputs: tensors on the GPU.
    Raises RuntimeError where the GPU library is not in use.
    """
    if not tf.config.get_visible_devices("GPU"):
        raise RuntimeError("device time needs a GPU; TensorFlow sees none")
    ops, functions = backends.gpu_library()
    mark = ops.blocksparse_mark

    @tf.function(autograph=False)
    def timed(*tensors):
        with tf.control_dependencies(tensors), tf.device("GPU:0"):
            first = mark(tensors[0], flush=CACHE)
        with tf.control_dependencies([first]):
            results = tf.nest.flatten(step(*map(tf.identity, tensors)))
        with tf.control_dependencies(results), tf.device("GPU:0"):
            return mark(results[0])

    for _ in range(repeats + 2):
        timed(*inputs)
    return _read_marks(functions, repeats + 2)[2:]


def device_ms(step: Callable, inputs: tuple, repeats: int = 20) -> float:
    """The median of device_times."""
    return statistics.median(device_times(step, inputs, repeats))


def _read_marks(library: ctypes.CDLL, pairs: int) -> list[float]:
    times = (ctypes.c_float * pairs)()
    found = library.blocksparse_gpu_read_marks(times, pairs)
    if found != pairs:
        raise RuntimeError(f"the GPU recorded {found} pairs of events; {pairs} were asked for")
    return list(times)
