"""Recomputation under eager execution: both runs are ordinary Python, watched operation by operation.

The first run is on no tape of the caller's, so that of what it computed only that lives on which it left behind: its
results, and what it stored elsewhere (an auxiliary loss, an attribute). The tapes get one step, which leads there from
what it took from outside: arguments wherever they were hidden, tensors, variables. The gradient of that step runs the
function again, on a tape, with the draws and the variables' values of the first run, and compares what it does.
"""

from __future__ import annotations

import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

# The public interface lacks these: a forward pass that no tape of the caller's holds on to, a look at each operation
# as it runs, and what a tape watches.
from tensorflow.python.eager import forwardprop_util, record, tape
from tensorflow.python.eager.polymorphic_function.concrete_function import ConcreteFunction
from tensorflow.python.framework import op_callbacks

from . import kinds
from .arguments import copied, tensors
from .attach import NO_SECOND, Asked, NoSecondDerivative, has_gradient, once
from .inner_tapes import is_watched, unrecorded
from .signs import Signs, compare, compare_structures, different, outline
from .state import State
from .variables import Changed, changed, refuse_list, same, value_of, variable_dtype


def call(function: Callable, args: Any) -> Any:
    """function of args, recomputed for its gradients. args: positional ones and keywords, however nested."""
    return _First(function, args).result


class _First:
    """The first run. Values are known by the number that TensorFlow gives each eager tensor, once for all time."""

    def __init__(self, function: Callable, args: Any):
        self.function, self.state, self.signs = function, State(), Signs()
        self.args = copied(args)  # the caller's own may change
        self.outside: dict[int, tf.Tensor] = {}  # what it took that gradients may lead to, and its arguments
        self.live: set[int] = set()  # what depends on these
        self.drawn: list[list[tf.Tensor]] = []
        self.born: list[tuple[weakref.ref, int]] = []
        self.start = tf.constant(0)._id
        for number, x in enumerate(tensors(args)):
            self.signs.of.setdefault(x._id, hash(("argument", number)))
            self._take(x)
        with unrecorded(), record.VariableWatcher() as watcher, watched(self.see):
            self.result = function(*args[0], **args[1])
        self.outline = outline(self.result)
        self.results = [self.sign(y) for y in tensors(self.result)]
        self._find_sources(watcher.watched_variables())
        moved = [x for x in self.outside.values() if has_gradient(x) or variable_dtype(x) is not None]
        if any(map(_tangents, moved)):
            raise NoSecondDerivative(NO_SECOND)
        self._record()

    def see(self, kind, inputs, attrs, outputs, op_name=None, graph=None):
        """Notes an operation that just ran."""
        if graph is None:
            kind, details = _describe(kind, attrs, refuse=True)
            given = [self.sign(x) for x in inputs]
            keys = [y._id for y in outputs or ()]
            if kinds.is_draw(kind):
                self.signs.draw(kind, keys)
                self.drawn.append(list(outputs))
            else:
                self.signs.step(kind, details, given, keys)
            if any(x._id in self.live for x in inputs):
                self.live.update(keys)
            # A run around this one may have put something older in the place of what the operation gave.
            self.born += [
                (weakref.ref(y), y._id) for y in outputs or () if has_gradient(y) and y._id > self.start
            ]
        return outputs

    def sign(self, x: tf.Tensor) -> int:
        """The sign of a value. One not seen before came from outside; a constant is what it holds."""
        if x._id not in self.signs.of:
            self.signs.of[x._id] = constant_sign(x)
            if variable_dtype(x) is not None or (
                (has_gradient(x) or x.dtype == tf.variant) and is_watched(x)
            ):
                self._take(x)
        return self.signs.of[x._id]

    def _take(self, x: tf.Tensor) -> None:
        """Keeps x: gradients may lead to it."""
        refuse_list(x)
        self.outside[x._id] = x
        if has_gradient(x) or x.dtype == tf.resource:
            self.live.add(x._id)

    def _find_sources(self, variables: Sequence[tf.Variable]) -> None:
        """What gradients can lead to, and the values of variables."""
        for variable in variables:
            tape.variable_accessed(variable)  # what the caller's tapes would have done
            self._take(variable.handle)
        self.names = {variable.handle._id: variable.name for variable in variables}
        self.sources = [x for x in self.outside.values() if is_watched(x)]
        with record.stop_recording():
            handles = [x for x in self.outside.values() if variable_dtype(x) is not None]
            self.values = {x._id: (x, value_of(x)) for x in handles}

    def _record(self) -> None:
        """Gives the tapes one step from the sources to all that is left of the run."""
        left = [(y, key) for y, key in ((born(), key) for born, key in self.born) if y is not None]
        self.computed, self.born = {key for _, key in self.born}, []
        if not left or not self.sources:
            return
        signs, asked = [self.signs.of[key] for _, key in left], Asked()

        def gradient(*dys):
            return self.gradient(signs, dys, asked.taken(dys))

        outputs = [y for y, _ in left]
        if len(left) == 1:
            record.record_operation("Recomputed", outputs, self.sources, gradient)
            return
        with record.stop_recording():
            made = [tf.identity(y) for y in outputs]
        record.record_operation("Recomputed", made, self.sources, gradient)
        for place, (y, own) in enumerate(zip(outputs, made)):
            record.record_operation("Result", [y], [own], partial(asked.note, place))

    def gradient(self, signs: list[int], dys: Sequence[tf.Tensor], asked: list[int]) -> list:
        """The sources' gradients, given those of the values that have these signs; asked: the places that count."""
        if not tf.executing_eagerly():
            raise kinds.Refused(
                "the gradient of a recomputable function that ran eagerly was taken inside a tf.function, as a tape's "
                "jacobian does; call the function in the same tf.function, or with recompute=False, or use "
                "jacobian(..., experimental_use_pfor=False)"
            )
        second = _Second(self, signs)
        with tf.GradientTape(watch_accessed_variables=False) as inner:
            inner.watch(self.sources)
            with self.state.again(reuse=False), watched(second.see):
                args, kwargs = copied(self.args)
                result = self.function(*args, **kwargs)
        if second.overtaken is not None:
            raise second.overtaken
        compare_structures(self.outline, outline(result))
        results = [second.sign(y) for y in tensors(result)]
        # What nobody asks for need not be there again: constants of a tf.function that the first run traced.
        targets, given = [second.found.get(signs[place]) for place in asked], [dys[place] for place in asked]
        compare(self.signs, second.signs, [*zip(self.results, results)], complete=None not in targets)
        grads = inner.gradient(targets, self.sources, output_gradients=given)
        return once(grads, [*dys, *self.sources])


class _Second:
    """The second run: gets the draws and the values of variables that the first had."""

    def __init__(self, first: _First, wanted: list[int]):
        self.first, self.signs, self.busy = first, Signs(), False
        self.wanted, self.found = set(wanted), dict[int, tf.Tensor]()
        self.overtaken: Changed | None = None
        self.taken: list[tf.Tensor] = []  # their numbers stand for them: they have to live on

    def see(self, kind, inputs, attrs, outputs, op_name=None, graph=None):
        """Notes an operation that just ran, and puts what the first run had in the place of what it gave."""
        if graph is not None or self.busy:
            return outputs
        kind, details = _describe(kind, attrs, refuse=False)
        given = [self.sign(x) for x in inputs]
        keys = [y._id for y in outputs or ()]
        if kinds.is_draw(kind):
            self._again(self.signs.draw(kind, keys), kind, inputs, outputs)
        else:
            self.signs.step(kind, details, given, keys)
            self._read(kind, inputs, attrs, outputs)
        for key, y in zip(keys, outputs or ()):
            sign = self.signs.of[y._id] = self.signs.of[key]
            if sign in self.wanted:
                self.found.setdefault(sign, y)
        return outputs

    def sign(self, x: tf.Tensor) -> int:
        """The sign of a value, where the first run has one to compare with."""
        first, key = self.first, x._id
        if key not in self.signs.of:
            self.taken.append(x)
            known = first.signs.of.get(key)
            if known is not None and key in first.computed and key in first.live:
                raise different(
                    f"it kept a tensor of shape {x.shape} that it computed the first time, and took it from there "
                    "the second, where it has no gradient"
                )
            if known is None:
                self._note_changed(x)
            self.signs.of[key] = constant_sign(x) if known is None else known
        return self.signs.of[key]

    def _again(self, number: int, kind: str, inputs: Sequence[tf.Tensor], outputs: list) -> None:
        drawn = self.first.drawn[number : number + 1]
        if not drawn or [(y.dtype, y.shape) for y in drawn[0]] != [(y.dtype, y.shape) for y in outputs]:
            raise different(f"random draw {number}, {kind}, had no equal the first time")
        if kind == "RngReadAndSkip":  # a generator that was read again: it stood where the output says
            self._quietly(tf.raw_ops.AssignVariableOp, resource=inputs[0], value=outputs[0])
        outputs[:] = drawn[0]

    def _read(self, kind: str, inputs: Sequence[tf.Tensor], attrs: tuple, outputs: list) -> None:
        """Values of the first run for those that were read now."""
        for x in inputs:
            if x._id not in self.first.values:
                continue
            handle, value = self.first.values[x._id]
            if kind == "ReadVariableOp":
                linked = self._quietly(_linked, handle, value)
                # A ForwardAccumulator made inside: it has a tangent for either, by other operations.
                for own, its in zip(_tangents(linked), _tangents(outputs[0])):
                    self.signs.of[own._id] = self.sign(its)
                outputs[0] = linked
            elif kind == "ResourceGather":
                dims = dict(zip(attrs[::2], attrs[1::2]))["batch_dims"]
                value = self._quietly(_linked, handle, value)
                outputs[0] = self._quietly(tf.gather, value, inputs[1], batch_dims=dims)
            elif kind != "VariableShape" and self._quietly(changed, value, value_of, x):
                raise Changed.of(self.first.names.get(x._id), value.shape)

    def _note_changed(self, x: tf.Tensor) -> None:
        """Notes where x, which nobody gave, is what an updated variable holds now: an operation such as x * w reads w
        for itself, unseen. An error from here would be lost: operators catch it and try something else."""
        if not has_gradient(x) or self.busy:
            return
        for key, (handle, value) in self.first.values.items():
            if (x.dtype, x.shape) != (value.dtype, value.shape):
                continue
            now = self._quietly(value_of, handle)
            if self._quietly(same, x, now) and not self._quietly(same, value, now):
                self.overtaken = Changed.of(self.first.names.get(key), value.shape)

    def _quietly(self, function: Callable, *args: Any, **kwargs: Any) -> Any:
        """function's operations are seen by nobody."""
        self.busy = True
        try:
            return function(*args, **kwargs)
        finally:
            self.busy = False


def _linked(handle: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
    """The value, with the variable's gradient as its own: for the tapes that watch the variable when it is read."""
    with record.stop_recording():
        value = tf.identity(value)
    record.record_operation("FirstValue", [value], [handle], lambda dy: [dy])
    return value


def _tangents(x: tf.Tensor) -> list[tf.Tensor]:
    return forwardprop_util.pack_tangents([x]).tangents


@contextmanager
def watched(callback: Callable) -> Iterator[None]:
    """Calls callback(kind, inputs, attrs, outputs, op_name, graph) for each operation that runs or is built."""

    def told(kind, inputs, attrs, outputs, op_name=None, graph=None):
        outputs = callback(kind, inputs, attrs, outputs, op_name, graph)
        # In a graph a callback gets a tuple, and a function may return what tf.split gives, which is a list.
        return outputs if graph is None or outputs is None else list(outputs)

    op_callbacks.add_op_callback(told)
    try:
        yield
    finally:
        op_callbacks.remove_op_callback(told)


def constant_sign(x: tf.Tensor) -> int:
    """A number that is the same for constants of the same bytes; of a resource or the like, by what it is."""
    if x.dtype in (tf.resource, tf.variant):
        return hash((x.dtype.name, x._id))
    values = x.numpy()
    if x.dtype == tf.string:  # one is bytes, several are an array of objects
        data = repr(np.asarray(values, object).tolist()).encode()
    else:
        data = values.tobytes()
    return hash((x.dtype.name, tuple(x.shape), zlib.crc32(data), len(data)))


def _describe(kind: str | bytes, attrs: tuple, refuse: bool) -> tuple[str, Any]:
    """An operation's kind, and what else decides its result besides its arguments."""
    kind = kind.decode() if isinstance(kind, bytes) else kind
    own = kinds.is_function(kind)
    if refuse and not own:
        kinds.check(kinds.kind_with(kind, attrs), inside=False)
    names = [kind] if own else [tf.compat.as_str(x.name) for x in attrs if isinstance(x, ConcreteFunction)]
    inner = [kinds.inner_kinds(name, None) for name in names]
    if refuse:
        for one in {one for each in inner for one in each}:
            kinds.check(one, inside=True)
    if own:
        return f"the tf.function {kinds.plain_name(kind)}", kinds.skeleton(inner[0])
    # A function has another name every time it is traced.
    rest = [x for x in attrs if not isinstance(x, ConcreteFunction)]
    return kind, (repr(rest), *map(kinds.skeleton, inner))
