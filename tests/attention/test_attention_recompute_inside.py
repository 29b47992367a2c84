"""What recomputed functions have inside in real programs: functions traced before, tapes, lists, and tapes around."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import blocksparse
import sparse_attention

tf1 = tf.compat.v1
X = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
W = np.random.default_rng(1).standard_normal((4, 4)).astype(np.float32) / 2
DECORATORS = pytest.mark.parametrize("decorate", [sparse_attention.recomputable, blocksparse.recomputable])
TRACED = pytest.mark.parametrize("traced", [False, True], ids=["eager", "function"])


def close(again, plain):
    assert len(again) == len(plain)
    for one, other in zip(again, plain):
        assert one is not None and np.any(other)
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def used(w):
    return tf.function(lambda x: tf.tanh(x @ w), autograph=False)


def concrete(w):
    return used(w).get_concrete_function(tf.TensorSpec([4, 4]))


def nested(w):
    inner = used(w)
    return tf.function(lambda x: inner(x) + 1.0, autograph=False)


def wrapped(w):
    return tf1.wrap_function(lambda x: tf.tanh(x @ w), [tf.TensorSpec([4, 4])])


@DECORATORS
@pytest.mark.parametrize("make", [used, concrete, nested, wrapped])
def test_variables_of_a_function_traced_before_have_gradients_in_every_step(decorate, make):
    w, x = tf.Variable(W), tf.constant(X)
    inside = make(w)
    f = decorate(lambda x: inside(x))
    for _ in range(3):
        found = []
        for recompute in (True, False):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(f(x, recompute=recompute) ** 2)
            found.append([tape.gradient(loss, w)])
        close(*found)
        w.assign_sub(0.1 * found[0][0])


def test_weights_of_a_saved_model_and_of_a_compiled_keras_model_have_gradients(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, "tanh")])
    model.export(tmp_path / "saved", verbose=False)
    loaded, x = tf.saved_model.load(str(tmp_path / "saved")), tf.constant(X)
    variables = [variable.value for variable in model.variables]
    kinds = {"saved": (loaded.serve, loaded.variables), "function": (tf.function(model), variables)}
    for inside, variables in kinds.values():
        f = sparse_attention.recomputable(lambda x, inside=inside: inside(x))
        found = []
        for recompute in (True, True, False):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(f(x, recompute=recompute) ** 2)
            found.append(tape.gradient(loss, variables))
        close(found[0], found[2])
        close(found[1], found[2])


def by_its_gradient(w, x):
    with tf.GradientTape() as tape:
        y = tf.reduce_sum(tf.tanh(x @ w))
    return x @ (w - 0.1 * tape.gradient(y, w))  # a step of gradient descent inside, as MAML takes


def by_a_watched_one(w, x):
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(w)
        y = tf.reduce_sum(tf.tanh(x @ w))
    return x @ tape.gradient(y, w)


def by_its_tangent(w, x):
    with tf.autodiff.ForwardAccumulator(w, tf.ones_like(w)) as forward:
        y = tf.tanh(x @ w)
    return forward.jvp(y)


@DECORATORS
@TRACED
@pytest.mark.parametrize("inside", [by_its_gradient, by_a_watched_one, by_its_tangent])
def test_derivatives_taken_inside_reach_variables_from_outside(decorate, traced, inside):
    w, x = tf.Variable(W), tf.constant(X)
    f = decorate(lambda x: inside(w, x))

    def step(recompute):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(f(x, recompute=recompute) ** 2)
        return tape.gradient(loss, [x, w])

    run = tf.function(step, autograph=False) if traced else step
    close(run(True), run(False))


@DECORATORS
@pytest.mark.parametrize("made", [tf.ones_like, lambda w: tf.ones(w.shape) * 1.5], ids=["alike", "computed"])
def test_a_function_traced_inside_keeps_constants_of_its_own(decorate, made):
    w, x = tf.Variable(W), tf.constant(X)

    @tf.function
    def traced(x):
        with tf.init_scope():  # runs once, when the first run traces this; the second finds it traced
            scale = made(w)
        return tf.tanh(x @ (w * scale))

    f = decorate(lambda x: traced(x) * 2.0)

    def gradients(recompute):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(f(x, recompute=recompute) ** 2)
        return tape.gradient(loss, [x, w])

    close(gradients(True), gradients(False))


LISTS = {
    "split": lambda y: tf.split(y, 2),
    "unstack": lambda y: tf.unstack(y),
    "partition": lambda y: tf.dynamic_partition(y, [0, 1, 0, 1], 2),
    "a loop over parts": lambda y: tf.while_loop(
        lambda i, *_: i < 2,
        lambda i, *parts: (i + 1, *tf.split(tf.concat(parts, 0) * 2.0, 2)),
        (0, y[:2], y[2:]),
    )[1:],
}


@TRACED
@pytest.mark.parametrize("kind", LISTS)
def test_lists_that_tensorflow_makes_can_be_results(traced, kind):
    w, x = tf.Variable(W), tf.constant(X)
    f = sparse_attention.recomputable(lambda x: LISTS[kind](x @ w))

    def step(recompute):
        with tf.GradientTape() as tape:
            parts = f(x, recompute=recompute)
            loss = sum(tf.reduce_sum(part**2) * (i + 1) for i, part in enumerate(parts))
        return [tape.gradient(loss, w)]

    run = tf.function(step, autograph=False) if traced else step
    close(run(True), run(False))


BRANCHES = {
    "condition": lambda w, x: tf.cond(tf.reduce_sum(x) > -99.0, lambda: x @ w * 3.0, lambda: x - 1.0),
    "loop": lambda w, x: tf.while_loop(lambda i, x: i < 2, lambda i, x: (i + 1, tf.tanh(x @ w)), [0, x])[1],
    "scan": lambda w, x: tf.scan(lambda a, row: tf.tanh(a + row), x @ w, initializer=tf.zeros(4)),
    "condition in a loop": lambda w, x: tf.while_loop(
        lambda i, x: i < 2, lambda i, x: (i + 1, tf.cond(i > 0, lambda: x @ w, lambda: x * 2.0)), [0, x]
    )[1],
}


@pytest.mark.parametrize("kind", BRANCHES)
@pytest.mark.parametrize("around", ["persistent", "two"])
def test_conditions_and_loops_under_several_tapes(kind, around):
    """There TensorFlow puts them into a function of its own, in the first run alone."""
    w, x = tf.Variable(W), tf.constant(X)
    f = sparse_attention.recomputable(lambda x: BRANCHES[kind](w, x))

    @tf.function
    def step(recompute):
        with tf.GradientTape(persistent=True) as one, tf.GradientTape() as other:
            one.watch(x)
            y = f(x, recompute=recompute)
            losses = tf.reduce_sum(y**2), tf.reduce_sum(tf.sin(y))
        second = one if around == "persistent" else other
        return one.gradient(losses[0], x), second.gradient(losses[1], w)

    close(step(True), step(False))


def test_a_constant_that_differs_in_a_loop_under_several_tapes_is_a_difference():
    count, x = [0.0], tf.constant(X)

    def body(i, x):
        count[0] += 1.0
        return i + 1, x * count[0]

    f = sparse_attention.recomputable(lambda x: tf.while_loop(lambda i, x: i < 2, body, [0, x])[1])

    @tf.function
    def step():
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            loss = tf.reduce_sum(f(x, recompute=True) ** 2)
        return tape.gradient(loss, x)

    with pytest.raises(ValueError, match="did not do the same when it ran again"):
        step()


@TRACED
def test_arguments_are_those_of_the_call(traced):
    def consume(xs):
        return xs.pop() * 2.0 + xs.pop()

    def step(recompute):
        xs = [tf.constant(X), tf.constant(W)]
        with tf.GradientTape() as tape:
            tape.watch(xs)
            watched = list(xs)
            loss = tf.reduce_sum(sparse_attention.recomputable(consume)(xs, recompute=recompute) ** 2)
        xs.append(None)
        return tape.gradient(loss, watched)

    run = tf.function(step, autograph=False) if traced else step
    close(run(True), run(False))


@DECORATORS
def test_a_function_with_an_argument_named_recompute_is_refused(decorate):
    with pytest.raises(TypeError, match=r"has an argument named recompute.*rename the function's own"):
        decorate(lambda x, recompute=False: x)


def slowly(h):
    """Products that take some hundredths of a second: whoever does not wait for them is far ahead."""
    big = tf.fill([600, 600], tf.reduce_mean(h) / 600)
    for _ in range(6):
        big = tf.tanh(big @ big + 0.01)
    return big


def product(h, w):
    with tf.control_dependencies([slowly(h)]):
        return h @ w


IN_A_CONDITION = {
    "cond": lambda h, w: tf.cond(tf.reduce_sum(h) > -1e3, lambda: product(h, w), lambda: h),
    "case": lambda h, w: tf.switch_case(tf.size(h) // 16, [lambda: h, lambda: product(h, w)]),
    "cond in cond": lambda h, w: tf.cond(
        tf.reduce_sum(h) > -1e3, lambda: IN_A_CONDITION["cond"](h, w), lambda: h
    ),
    "function": lambda h, w: tf.function(lambda h: product(h, w), autograph=False)(h),
    "function in cond": lambda h, w: tf.cond(
        tf.reduce_sum(h) > -1e3, lambda: IN_A_CONDITION["function"](h, w), lambda: h
    ),
    "loop": lambda h, w: tf.while_loop(
        lambda i, h: i < 2, lambda i, h: (i + 1, product(h, w)), (0, h), maximum_iterations=2
    )[1],
}


@pytest.mark.parametrize("looped", [False, True], ids=["function", "loop"])
@pytest.mark.parametrize("kind", IN_A_CONDITION)
def test_an_update_waits_for_what_the_second_run_reads_inside(kind, looped):
    def trained(recompute):
        w, x = tf.Variable(W), tf.constant(X)
        f = sparse_attention.recomputable(lambda h: IN_A_CONDITION[kind](tf.nn.softmax(h) * h, w))

        def step(i, h):
            with tf.GradientTape() as tape:
                tape.watch(h)
                loss = tf.reduce_sum(f(h, recompute=recompute) ** 2)
            dh, dw = tape.gradient(loss, [h, w])
            w.assign_sub(0.5 * dw)
            return i + 1, h - 0.5 * dh

        @tf.function(autograph=False)
        def run():
            if not looped:
                return step(0, x)[1]
            return tf.while_loop(lambda i, _: i < 2, step, (0, x), parallel_iterations=1)[1]

        return [run().numpy(), w.numpy()]

    close(trained(True), trained(False))
