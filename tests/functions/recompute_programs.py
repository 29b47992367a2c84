"""Random programs for recomputable: each runs plainly and with recompute=True, in one of the ways TensorFlow has.

Program n is decided by the number n alone. Its gradients have to be those of the plain run, or the decorator has to
refuse it in its own words, which only programs with a reason for it may be.

    python tests/functions/recompute_programs.py 5000 [first]
"""

from __future__ import annotations

import dataclasses
import os
import random
import sys
import warnings
from collections import Counter
from contextlib import contextmanager

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras
import numpy as np
import tensorflow as tf

import blocksparse
import sparse_attention

tf1 = tf.compat.v1
SIZE = 4
WAYS = {
    "eager": 40,
    "function": 22,
    "outside": 8,
    "functions eagerly": 8,
    "graph": 8,
    "graph v1": 6,
    "loop": 6,
    "xla": 2,
}
REFUSALS = (
    "recomputable function", "recomputed function", "between a recomputed function and its gradient"
)  # fmt: skip


class World:
    """What a program finds outside its function; one for each run, all alike."""

    def __init__(self, number, way, nudge=0):
        numbers = np.random.default_rng(number)

        def draw(*shape):
            return (numbers.standard_normal(shape) / 2).astype(np.float32)

        self.way = way
        self.w = tf.Variable(draw(SIZE, SIZE))
        self.b = tf.Variable(draw(SIZE))
        self.table = tf.Variable(draw(5, SIZE))
        self.outside = tf.constant(draw(3, SIZE))
        self.x = tf.constant(draw(3, SIZE))
        if nudge:  # by the last bit of each number, up, down or not
            signs = np.random.default_rng(nudge).integers(-1, 2, self.x.shape)
            self.x *= tf.constant(1 + signs * np.finfo(np.float32).eps, tf.float32)
        self.left, self.count, self.decorate = [], 0, None
        self.inner = tf.function(lambda h: tf.tanh(h @ self.w) + self.b, autograph=False)
        self.pure = tf.function(lambda h: tf.sin(h) * 2, autograph=False)
        self.before = tf.function(lambda h: tf.tanh(h @ self.w) * 1.1, autograph=False)
        self.inner_draw = tf.function(lambda h: h * tf.random.uniform([], 0.5, 1.5), autograph=False)
        if not way.startswith("graph"):
            self.before(self.x)  # traced where nobody watches
            self.dense = keras.layers.Dense(SIZE, activation="gelu", activity_regularizer="l2")
            self.norm = keras.layers.LayerNormalization()
            for layer in (self.dense, self.norm):
                layer.build((3, SIZE))
            self.dense.kernel.assign(draw(SIZE, SIZE))

    def variables(self):
        own = [self.w, self.b, self.table]
        return own if self.way.startswith("graph") else [*own, self.dense.kernel.value, self.norm.gamma.value]


@dataclasses.dataclass
class Hidden:
    """What tf.nest does not open."""

    value: tf.Tensor


def with_tape(world, h):
    with tf.GradientTape() as tape:
        tape.watch(h)
        z = tf.reduce_sum(tf.sin(h) ** 2) + tf.reduce_sum(h * world.b)
    return h + tape.gradient(z, h)


def descend(world, h):
    """A step of gradient descent inside."""
    with tf.GradientTape() as tape:
        z = tf.reduce_sum(tf.tanh(h @ world.w))
    return h @ (world.w - 0.1 * tape.gradient(z, world.w))


def loop(world, h, step):
    again = tf.while_loop(lambda i, _: i < 2, lambda i, h: (i + 1, step(h)), (0, h), maximum_iterations=2)
    return again[1]  # without a bound XLA cannot differentiate a loop


def choose(world, h, step):
    return tf.cond(tf.reduce_sum(h) > 0.1, lambda: step(h), lambda: h * 2)


@tf.custom_gradient
def clipped(h):
    # Of tf.gather dh is IndexedSlices, which no number multiplies.
    return tf.identity(h), lambda dh: tf.convert_to_tensor(dh) * 0.7


def drop(h):
    return tf.nn.dropout(h, 0.3, seed=2)


def leave(world, h):
    world.left.append(tf.reduce_sum(h**2) * 0.1)
    return h


def count(world, h):
    world.count += 1
    return h * 2 if world.count % 2 else tf.sin(h)


def count_tensors(world, h):
    world.count += 1
    return h * (world.outside if world.count % 2 else world.hidden.value)


def assign(world, h):
    world.b.assign_add(tf.ones_like(world.b))
    return h + world.b


def flip(world, h):
    return h * 1.5 if random.random() < 0.5 else tf.tanh(h)


# name: (step, where it can be ("e"ager, tf."f"unction, TensorFlow 1 "g"raph, "x"la), why it may be refused)
STEPS = {
    "tanh": (lambda world, h: tf.tanh(h), "efgx", ""),
    "scale": (lambda world, h: h * 1.3 + 0.1, "efgx", ""),
    "matmul": (lambda world, h: h @ world.w, "efgx", ""),
    "bias": (lambda world, h: h + world.b, "efgx", ""),
    "tensor": (lambda world, h: h * world.outside, "efgx", ""),
    "hidden": (lambda world, h: h + world.hidden.value, "efgx", ""),
    "look up": (lambda world, h: h + tf.gather(world.table, [1, 3, 1]), "efgx", ""),
    "softmax": (lambda world, h: tf.nn.softmax(h) * h, "efgx", ""),
    "shape": (lambda world, h: tf.reshape(h, [-1, tf.shape(h)[1]]) / tf.cast(tf.size(h), h.dtype) * 9, "efgx", ""),
    "stop": (lambda world, h: h + tf.stop_gradient(tf.exp(-(h**2))), "efgx", ""),
    "function": (lambda world, h: world.inner(h), "efgx", "updated"),
    "function traced before": (lambda world, h: world.before(h), "efx", "updated"),
    "descend": (descend, "ef", ""),
    "parts": (lambda world, h: tf.concat(tf.split(h, 2, axis=1)[::-1], 1), "efgx", ""),
    "pure function": (lambda world, h: world.pure(h), "efgx", ""),
    "dropout": (lambda world, h: tf.nn.dropout(h, 0.4, seed=11), "efg", ""),
    "normal": (lambda world, h: h * tf.random.normal([3, 1], seed=5), "efg", ""),
    "stateless": (lambda world, h: tf.nn.experimental.stateless_dropout(h, 0.4, seed=[1, 2]), "efgx", ""),
    "blocksparse dropout": (lambda world, h: blocksparse.dropout(h, 0.7)[0], "e", ""),
    "shuffled": (lambda world, h: tf.gather(h, tf.random.shuffle(tf.range(3), seed=3)), "efg", ""),
    "loop": (lambda world, h: loop(world, h, tf.sin), "efgx", ""),
    "loop with weights": (lambda world, h: loop(world, h, lambda h: tf.tanh(h @ world.w)), "efgx", "updated"),
    "condition": (lambda world, h: choose(world, h, tf.tanh), "efgx", ""),
    "condition with weights": (lambda world, h: choose(world, h, lambda h: h @ world.w), "efgx", "updated"),
    "rows": (lambda world, h: tf.map_fn(lambda row: row * tf.reduce_sum(row), h), "efg", ""),
    "tape": (with_tape, "ef", ""),
    "custom gradient": (lambda world, h: clipped(h), "efgx", ""),
    "nested": (lambda world, h: world.decorate(lambda h: tf.tanh(h @ world.w))(h, recompute=True), "efgx", ""),
    "nested draw": (lambda world, h: world.decorate(drop)(h + world.b, recompute=True), "efg", ""),
    "dense": (lambda world, h: world.dense(h), "ef", ""),
    "norm": (lambda world, h: world.norm(h), "efx", ""),
    "leave": (leave, "ef", ""),
    "flip": (flip, "efgx", ""),
    "count": (count, "efgx", "always"),
    "count tensors": (count_tensors, "efgx", "always"),
    "count in a loop": (lambda world, h: loop(world, h, lambda h: count(world, h)), "efgx", "always"),
    "count in a condition": (lambda world, h: choose(world, h, lambda h: count(world, h)), "efgx", "always"),
    "assign": (assign, "ef", "always"),
    "draw in a function": (lambda world, h: world.inner_draw(h), "ef", "always"),
}  # fmt: skip
RARE = {name for name, (_, _, refused) in STEPS.items() if refused == "always"}


@dataclasses.dataclass
class Program:
    """Steps of one function, and how it is called."""

    number: int

    def __post_init__(self):
        pick = random.Random(self.number)
        self.way = pick.choices(list(WAYS), list(WAYS.values()))[0]
        letter = {"graph": "g", "graph v1": "g", "xla": "x", "eager": "e", "functions eagerly": "e"}.get(
            self.way, "f"
        )
        names = [name for name in STEPS if letter in STEPS[name][1]]
        if self.way == "loop":  # side outputs of a loop's body are nobody's
            names = [name for name in names if name not in ("leave", "dense")]
        weights = [0.1 if name in RARE else 1 for name in names]
        self.names = pick.choices(names, weights, k=pick.randint(1, 5))
        self.openai = pick.random() < 0.3
        self.dictionary = pick.random() < 0.3
        self.keyword = pick.random() < 0.3
        self.updated = (
            self.way in ("eager", "functions eagerly", "outside", "function") and pick.random() < 0.25
        )
        self.persistent = self.way in ("eager", "function") and pick.random() < 0.2
        self.listed = not self.dictionary and pick.random() < 0.2

    def may_be_refused(self):
        reasons = {STEPS[name][2] for name in self.names}
        return "always" in reasons or (self.updated and "updated" in reasons)

    def function(self, world):
        def run(h, offset):
            for name in self.names:
                h = STEPS[name][0](world, h)
            h = h + offset
            if self.listed:
                return tf.split(h, 2, axis=1)
            return {"out": h, "rank": 2, "where": tf.argmax(h, 1)} if self.dictionary else h

        return run

    def loss(self, world, recompute, x):
        """The loss of the program's function at x."""
        world.decorate = blocksparse.recomputable if self.openai else sparse_attention.recomputable
        world.hidden, world.left = Hidden(tf.sin(world.outside) * x), []
        f = world.decorate(self.function(world))
        y = (
            f(x * 1.0, offset=0.5, recompute=recompute)
            if self.keyword
            else f(x * 1.0, 0.5, recompute=recompute)
        )
        y = y["out"] if self.dictionary else tf.concat(y, 1) if self.listed else y
        total = tf.reduce_sum(y**2)
        if not world.way.startswith("graph") and "dense" in self.names:
            total += tf.add_n(world.dense.losses)
        return tf.add_n([total, *world.left])

    def gradients(self, recompute, nudge=0):
        """What the gradients are, as arrays. nudge: of a world whose x differs by rounding, in that way."""
        self.nudge = nudge
        random.seed(self.number)
        np.random.seed(self.number)
        if self.way.startswith("graph"):
            return self.in_graph(recompute)
        tf.random.set_seed(self.number)
        blocksparse.set_entropy(np.arange(2))
        world = World(self.number, self.way, self.nudge)
        step = getattr(self, {"loop": "in_loop", "outside": "outside"}.get(self.way, "on_tape"))
        if self.way not in ("eager", "outside"):
            function = tf.function(step, autograph=False, jit_compile=self.way == "xla")
            with functions_eagerly(self.way == "functions eagerly"):
                return [np.asarray(dx) for dx in function(world, recompute)]
        return [np.asarray(dx) for dx in step(world, recompute)]

    def on_tape(self, world, recompute):
        sources = [world.x, world.outside, *world.variables()]
        with tf.GradientTape(persistent=self.persistent) as tape:
            tape.watch([world.x, world.outside])
            loss = self.loss(world, recompute, world.x)
        if self.updated:
            world.w.assign_add(tf.ones_like(world.w))
            world.table.assign(world.table * 2)
        if self.persistent:
            tape.gradient(loss, sources)
        return dense(tape.gradient(loss, sources, unconnected_gradients="zero"))

    def outside(self, world, recompute):
        """The loss in a tf.function, its gradient eagerly."""
        function = tf.function(lambda x: self.loss(world, recompute, x), autograph=False)
        with tf.GradientTape() as tape:
            tape.watch([world.x, world.outside])
            loss = function(world.x)
        if self.updated:
            world.w.assign_add(tf.ones_like(world.w))
        sources = [world.x, world.outside, *world.variables()]
        return dense(tape.gradient(loss, sources, unconnected_gradients="zero"))

    def in_loop(self, world, recompute):
        """Training steps in the body of a loop."""

        def body(i, dx):
            with tf.GradientTape() as tape:
                tape.watch(dx)
                loss = self.loss(world, recompute, dx)
            found = dense(tape.gradient(loss, [dx, *world.variables()], unconnected_gradients="zero"))
            for variable, slope in zip(world.variables(), found[1:]):
                variable.assign_sub(0.01 * slope)
            return i + 1, dx - 0.01 * found[0]

        # One iteration at a time: side by side they draw in any order, recomputed or not.
        dx = tf.while_loop(lambda i, _: i < 2, body, (0, world.x), parallel_iterations=1)[1]
        return [dx, *(tf.identity(variable) for variable in world.variables())]

    def in_graph(self, recompute):
        with loops_of_tensorflow_1(self.way == "graph v1"), tf.Graph().as_default(), tf1.Session() as session:
            tf.random.set_seed(self.number)
            world = World(self.number, self.way, self.nudge)
            loss = self.loss(world, recompute, world.x)
            sources = [world.x, world.outside, *world.variables()]
            found = tf.gradients(loss, sources, unconnected_gradients="zero")
            session.run(tf1.global_variables_initializer())
            return session.run([tf.convert_to_tensor(dx) for dx in found])


def dense(gradients):
    return [tf.convert_to_tensor(dx) for dx in gradients]


@contextmanager
def functions_eagerly(on):
    tf.config.run_functions_eagerly(on)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)


@contextmanager
def loops_of_tensorflow_1(on):
    if on:
        tf1.disable_control_flow_v2()
    try:
        yield
    finally:
        tf1.enable_control_flow_v2()


def check(number):
    """Runs program `number`; its way and outcome; raises AssertionError for any but these.

    "equal", "refused", or "chaotic": equal as far as rounding decides.
    """
    program = Program(number)
    plain = program.gradients(False)
    assert all(np.isfinite(dx).all() for dx in plain), (
        f"{program}: {program.names} is no program to compare with"
    )
    label = f"program {number}, {program.way}, {program.names}, updated: {program.updated}"
    try:
        ours = program.gradients(True)
    except (ValueError, LookupError, tf.errors.InvalidArgumentError) as error:
        assert any(text in str(error) for text in REFUSALS), f"{label}: {error}"
        assert program.may_be_refused(), f"{label} was refused: {error}"
        return program.way, "refused"
    try:
        compare(ours, plain, label)
    except AssertionError:
        # Loops of training steps can grow the last bit of x into per cents of the result, recomputed or not.
        others = [program.gradients(False, nudge) for nudge in (1, 2, 3)]
        moved = [max(np.abs(dx - want).max() for dx in dxs) for want, *dxs in zip(plain, *others)]
        if max(moved) == 0:
            raise
        compare(ours, plain, f"{label}, the last bit of x moves them by {moved}", moved)
        return program.way, "chaotic"
    return program.way, "equal"


def compare(ours, plain, label, rounding=None):
    """Asserts that gradients are equal. rounding: what each may differ by besides."""
    for number, (got, want, more) in enumerate(zip(ours, plain, rounding or [0.0] * len(plain), strict=True)):
        allowed = 2e-4 * (1 + np.abs(want).max()) + more
        np.testing.assert_allclose(got, want, rtol=2e-3, atol=allowed, err_msg=f"{label}, {number}")


def main(count, first=0):
    """Checks programs first, first + 1, ...; prints the counts, and returns the number of those that fail."""
    warnings.simplefilter("ignore")
    tf.get_logger().setLevel("ERROR")
    outcomes, failed = Counter(), 0
    for number in range(first, first + count):
        try:
            outcomes[check(number)] += 1
        except Exception as error:
            failed += 1
            outcomes[Program(number).way, "FAILED"] += 1
            print(
                f"{number} {Program(number).way} {Program(number).names}: {type(error).__name__}: {str(error)[:700]}",
                flush=True,
            )
        if number % 50 == 49:
            tf1.reset_default_graph()
            keras.backend.clear_session()
    for (way, outcome), times in sorted(outcomes.items()):
        print(f"{way:18} {outcome:8} {times}")
    return failed


if __name__ == "__main__":
    raise SystemExit(bool(main(*map(int, sys.argv[1:]))))
