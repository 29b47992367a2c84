"""Moving averages of parameters; optimize.py has them under OpenAI's name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from .recomputation.trace import origin
from .tensors import TensorLike, as_float32, as_list, as_variable


class Ema:
    """Exponential moving averages of parameters: average -= (1 - decay) (average - parameter).

    fp16: 2 keeps every average in float16, True those of parameters that the graph casts, False none. The
    averages start at the parameters' initial values, in variables "<parameter>/<name>/ema".
    """

    def __init__(self, decay: TensorLike = 0.999, fp16: bool | int = False, name: str = "Ema"):
        self.decay, self.fp16, self.name = decay, fp16, name
        self._averages: dict[Any, tf.Variable] = {}  # by references

    def apply(self, params: Sequence[tf.Variable]) -> tf.Operation | None:
        """Makes the averages when first called, and updates them after what tf.control_dependencies()
        holds."""
        params = list(map(as_variable, as_list(params)))
        for param in params:
            if not isinstance(param, tf.Variable):
                raise TypeError(
                    f"params has a {type(param).__name__}; give the variables whose averages to keep"
                )
            if _key(param) not in self._averages:
                self._averages[_key(param)] = self._make(param)
        return tf.group([self._update(self._averages[_key(param)], param) for param in params])

    def _update(self, average: tf.Variable, param: tf.Variable) -> tf.Operation:
        old = as_float32(average.read_value())
        new = old - (1 - as_float32(self.decay)) * (old - as_float32(param.read_value()))
        return average.assign(tf.cast(new, average.dtype.base_dtype))

    def _make(self, param: tf.Variable) -> tf.Variable:
        half = self.fp16 == 2 or (self.fp16 and _is_cast(param))
        dtype = tf.float16 if half else tf.float32
        if _is_eager(param):
            with tf.init_scope():
                start, name = tf.cast(param, dtype), f"{param.name[:-2]}/{self.name}/ema"
                return tf.Variable(start, trainable=False, name=name)
        with tf.init_scope(), tf.control_dependencies(None):
            known = tf.compat.v1.is_variable_initialized(param)
            start = tf.cond(known, param.read_value, lambda: param.initial_value)
            with tf.compat.v1.variable_scope(None, f"{param.op.name}/{self.name}"):
                return tf.compat.v1.get_variable("ema", initializer=tf.cast(start, dtype), trainable=False)

    def average(self, param: TensorLike) -> tf.Variable | None:
        """The average of a parameter, or of the parameter that a graph's tensor was cast from; None where there is
        none. Raises TypeError for an eager tensor, which does not know where it is from."""
        param = as_variable(param)
        if isinstance(param, tf.Variable):
            return self._averages.get(_key(param))
        if not tf.is_symbolic_tensor(param):
            raise TypeError(
                f"param is a {type(param).__name__}, but a variable or, in a graph, a tensor cast from one is wanted"
            )
        while param.ref() not in self._averages and len(param.op.inputs):
            param = param.op.inputs[0]
        outside = origin(param)  # of a tf.function, where an eager variable's handle came from
        for key, average in self._averages.items():
            if outside is key.deref() or outside is getattr(key.deref(), "handle", None):
                return average
        return None


def _is_eager(param: tf.Variable) -> bool:
    """Whether it lives outside of graphs, though it may be used in one, a tf.function."""
    return not tf.is_symbolic_tensor(_source(param))


def _key(param: tf.Variable) -> object:
    """What leads to the variable from a tensor read from it."""
    return param.ref() if _is_eager(param) else _source(param).ref()


def _source(param: tf.Variable) -> tf.Tensor:
    return param.handle if hasattr(param, "handle") else param.op.outputs[0]


def _is_cast(param: tf.Variable) -> bool:
    if _is_eager(param):
        return False
    reads = [
        read.outputs[0] for read in _source(param).consumers() if read.type in ("Identity", "ReadVariableOp")
    ]
    return any(op.type == "Cast" for read in reads for op in read.consumers())
