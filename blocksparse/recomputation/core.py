"""The decorator: what runs where."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import tensorflow as tf

from . import eager, graph


def decorate(function: Callable, makes_variables: bool) -> Callable:
    """f with f(..., recompute=True), which keeps nothing of what function computes inside for its gradient.

    makes_variables: function may call tf.get_variable in a TensorFlow 1 graph.
    """

    @wraps(function)
    def call(*args: Any, recompute: bool = False, **kwargs: Any) -> Any:
        if tf.executing_eagerly():
            if not recompute:
                return function(*args, **kwargs)
            return eager.call(lambda: function(*args, **kwargs), (args, kwargs))
        # Whether AutoGraph converts is known here, but no longer when the function runs again.
        context = tf.__internal__.autograph.control_status_ctx()
        converted = tf.__internal__.autograph.tf_convert(function, context)
        if not recompute:
            return converted(*args, **kwargs)
        return graph.call(converted, (args, kwargs), makes_variables)

    setattr(call, "autograph_info__", {})  # noqa: B010  AutoGraph converts the function, and leaves all this alone
    return call
