"""A run that no tape around it records, while those that are made inside it do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps

import tensorflow as tf

# TensorFlow can stop all tapes of a thread or none: so a tape that begins or ends inside has to be noticed.
from tensorflow.python import pywrap_tfe
from tensorflow.python.eager import backprop, forwardprop, record
from tensorflow.python.ops import gradients_util

_thread = threading.local()


@contextmanager
def unrecorded() -> Iterator[None]:
    """Stops the tapes there are. Where the caller makes one inside, all record until that ends."""
    _notice()
    outer = getattr(_thread, "open", None)
    _thread.open = 0
    try:
        with record.stop_recording(), _functions_name_variables():
            yield
    finally:
        _thread.open = outer


@contextmanager
def _functions_name_variables() -> Iterator[None]:
    """A tf.function that is called says which variables it reads, although no tape records: it says so to any graph
    around it that can be told, and calls variable_accessed for each, which is what a VariableWatcher hears.
    """
    graph = tf.compat.v1.get_default_graph()  # each thread has its own
    if hasattr(graph, "watch_variable"):
        yield
        return
    setattr(graph, "watch_variable", lambda variable: None)  # noqa: B010
    try:
        yield
    finally:
        del graph.watch_variable


def is_watched(x: tf.Tensor) -> bool:
    """Whether a tape records what is done with x, or would if it were not stopped."""
    stopped = pywrap_tfe.TFE_Py_TapeSetIsStopped()
    if stopped:
        pywrap_tfe.TFE_Py_TapeSetRestartOnThread()
    try:
        return gradients_util.PossibleTapeGradientTypes([x]) != 0
    finally:
        if stopped:
            pywrap_tfe.TFE_Py_TapeSetStopOnThread()


def _changing(method: Callable, step: int) -> Callable:
    @wraps(method)
    def noticed(self):
        method(self)
        before = getattr(_thread, "open", None)
        if before is None:
            return
        _thread.open = before + step
        if _thread.open == 0:
            pywrap_tfe.TFE_Py_TapeSetStopOnThread()
        elif before == 0:
            pywrap_tfe.TFE_Py_TapeSetRestartOnThread()

    setattr(noticed, "_noticed", True)  # noqa: B010
    return noticed


def _notice() -> None:
    """Once a process: tapes and forward accumulators say when they begin and end."""
    methods = [(backprop.GradientTape, "_push_tape", "_pop_tape")]
    methods += [(forwardprop.ForwardAccumulator, "_push_accumulator", "_pop_accumulator")]
    for kind, push, pop in methods:
        if not hasattr(getattr(kind, push), "_noticed"):
            setattr(kind, push, _changing(getattr(kind, push), 1))
            setattr(kind, pop, _changing(getattr(kind, pop), -1))
