"""Device time of TensorFlow code: events on the GPU's own stream, for which TensorFlow has no interface."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

import tensorflow as tf

from . import devices
from .machine import median

FLUSH = (
    1 << 30
)  # bytes cleared before each run: empties the caches, and lets the host get ahead of the device
WARM_UP = 2


def device_times(
    step: Callable, inputs: Sequence[tf.Tensor], repeats: int = 20, prepare: Callable | None = None
) -> list[float]:
    """Milliseconds that the GPU takes for step(*inputs), `repeats` times, caches flushed before each.

    step: maps its arguments to a tensor or a nest of tensors; traced once. inputs: tensors on the GPU.
    prepare: runs before the clock, on the inputs; step then gets what it returns (a gradient's tape, say).
    Raises RuntimeError where TensorFlow sees no GPU.
    """
    if not tf.config.get_visible_devices("GPU"):
        raise RuntimeError("device time needs a GPU; TensorFlow sees none")
    ops, functions = devices.gpu_library()

    def mark(tensors, flush):
        with tf.device("GPU:0"):
            return ops.blocksparse_mark(tensors[0], tensors[1:], flush=flush)

    @tf.function(autograph=False)
    def timed(*tensors):
        arguments = prepare(*tensors) if prepare else tensors
        # The marks take tensors as inputs: a control edge would not keep what an inlined function computes.
        start = mark(_tensors(arguments), FLUSH)
        with tf.control_dependencies([start]):
            if prepare is None:
                arguments = [tf.identity(tensor) for tensor in tensors]
            return mark(_tensors(step(*arguments)), 0)

    for _ in range(repeats + WARM_UP):
        timed(*inputs)
    return _read_marks(functions, repeats + WARM_UP)[WARM_UP:]


def device_ms(
    step: Callable, inputs: Sequence[tf.Tensor], repeats: int = 20, prepare: Callable | None = None
) -> float:
    """The median of device_times."""
    return median(device_times(step, inputs, repeats, prepare))


def _tensors(nest) -> list[tf.Tensor]:
    return [each for each in tf.nest.flatten(nest) if tf.is_tensor(each)]


def _read_marks(library: ctypes.CDLL, pairs: int) -> list[float]:
    times = (ctypes.c_float * pairs)()
    found = library.blocksparse_gpu_read_marks(times, pairs)
    if found != pairs:
        raise RuntimeError(f"the GPU recorded {found} pairs of events; {pairs} were asked for")
    return list(times)
