"""The decorator: what runs where."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from typing import Any

import tensorflow as tf

from . import eager, graph
from .arguments import refuse_iterators


def decorate(function: Callable, makes_variables: bool) -> Callable:
    """f with f(..., recompute=True), which keeps nothing of what function computes inside for its gradient.

    makes_variables: function may call tf.get_variable in a TensorFlow 1 graph.
    """

    @wraps(function)
    def call(*args: Any, recompute: bool = False, **kwargs: Any) -> Any:
        if recompute:
            refuse_iterators((args, kwargs))
        if tf.executing_eagerly():
            if not recompute:
                return function(*args, **kwargs)
            return eager.call(function, (args, kwargs))
        # Whether AutoGraph converts is known here, but no longer when the function runs again.
        context = tf.__internal__.autograph.control_status_ctx()
        converted = tf.__internal__.autograph.tf_convert(function, context)
        if not recompute:
            return converted(*args, **kwargs)
        return graph.call(converted, (args, kwargs), makes_variables)

    signature = None
    with suppress(ValueError, TypeError):  # some built-in functions have no signature
        signature = inspect.signature(function)
    if signature is not None:
        setattr(call, "__signature__", _with_recompute(signature))  # noqa: B010  tf.function asks it
    setattr(call, "autograph_info__", {})  # noqa: B010  AutoGraph converts the function, and leaves all this alone
    return call


def _with_recompute(signature: inspect.Signature) -> inspect.Signature:
    """The signature with the keyword that the decorator adds. Raises TypeError where the function has it."""
    if "recompute" in signature.parameters:
        raise TypeError(
            "the function has an argument named recompute, and would never get it: recomputable adds one of that name; "
            "rename the function's own"
        )
    parameters = {
        **signature.parameters,
        "recompute": inspect.Parameter(
            "recompute", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=bool
        ),
    }
    return signature.replace(parameters=sorted(parameters.values(), key=lambda parameter: parameter.kind))
