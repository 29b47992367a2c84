"""What a recomputed function may take and hold besides tensors: the plain gradient, or a refusal in words."""

from functools import partial

import numpy as np
import pytest
import tensorflow as tf
from recompute_ways import WAYS, assert_the_same, derived, either

import blocksparse
import sparse_attention

X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
each_way = pytest.mark.parametrize("way", ["eager", "graph"])


@pytest.fixture
def w():
    return tf.Variable([0.5, -1.0, 0.25, 2.0])


def assert_same_gradients(way, loss, w):
    assert_the_same(way, loss, X, w)


@each_way
@either
def test_ragged_results_and_arguments(decorate, way, w):
    cut = decorate(lambda x: tf.RaggedTensor.from_row_lengths(tf.sin(x * w), [1, 2]))
    bend = decorate(lambda ragged: tf.tanh(ragged * w))
    assert_same_gradients(
        way,
        lambda x, recompute: tf.reduce_sum(
            bend(cut(x, recompute=recompute), recompute=recompute).values ** 2
        ),
        w,
    )


@each_way
@either
def test_sparse_arguments(decorate, way, w):
    multiply = decorate(lambda sparse: tf.sin(tf.sparse.sparse_dense_matmul(sparse, w[:, tf.newaxis])))

    def loss(x, recompute):
        sparse = tf.SparseTensor([[0, 1], [1, 2], [2, 0]], x[:, 0], [3, 4])
        return tf.reduce_sum(multiply(sparse, recompute=recompute) ** 2)

    assert_same_gradients(way, loss, w)


@each_way
@either
def test_complex_numbers(decorate, way, w):
    turn = decorate(lambda z: tf.signal.fft(tf.exp(z) * tf.cast(w, tf.complex64)))
    assert_same_gradients(
        way,
        lambda x, recompute: tf.reduce_sum(tf.abs(turn(tf.complex(x, 2 * x), recompute=recompute)) ** 2),
        w,
    )


@each_way
@either
def test_a_list_that_the_function_fills(decorate, way, w):
    def note(x, into):
        into.append(tf.sin(x * w))
        return 2 * x

    noting = decorate(note)

    def loss(x, recompute):
        left = []
        y = noting(x, left, recompute=recompute)
        return tf.reduce_sum(y * left[0])

    assert_same_gradients(way, loss, w)


def test_a_tensor_array(w):
    """Eagerly a Python list; in a graph one value, through which the gradient to what was written would be lost."""
    stack = sparse_attention.recomputable(lambda array: tf.sin(array.stack() * w))

    def loss(x, recompute):
        array = tf.TensorArray(tf.float32, 3).unstack(tf.tanh(x))
        return tf.reduce_sum(stack(array, recompute=recompute) ** 2)

    assert_same_gradients("eager", loss, w)
    with pytest.raises(ValueError, match=r"took a tf.TensorArray or another list .* give it as one tensor"):
        derived("graph", loss, X, [w], True)


@each_way
@either
def test_a_lookup_between_changes_of_the_table(decorate, way, w):
    table = tf.lookup.experimental.MutableHashTable(tf.int32, tf.float32, 0.0)
    look = decorate(lambda x: tf.sin(x * w) * table.lookup(tf.constant([1]))[0])

    def loss(x, recompute):
        with tf.control_dependencies([table.insert([1], [2.0])]):
            y = look(x, recompute=recompute)
        with tf.control_dependencies([y]):
            table.insert([1], [5.0])
        return tf.reduce_sum(y**2)

    assert_same_gradients(way, loss, w)


@each_way
def test_a_table_that_is_changed_or_read_inside_a_function(way):
    table = tf.lookup.experimental.MutableHashTable(tf.int32, tf.float32, 0.0)

    def insert(x):
        table.insert([1], [2.0])
        return x * 1

    inner = tf.function(lambda x: x * table.lookup(tf.constant([1]))[0])
    for function, words in (
        (insert, "a recomputable function changed a table"),
        (lambda x: inner(x), "ran LookupTableFindV2 inside control flow or a tf.function"),
    ):
        refused = sparse_attention.recomputable(function)
        with pytest.raises(ValueError, match=words):
            WAYS[way](partial(refused, recompute=True))(tf.constant(X))


@each_way
@either
@pytest.mark.parametrize("moved", ["an argument", "a variable"])
def test_forward_mode_is_refused(decorate, way, moved, w):
    f = decorate(lambda x: tf.sin(x * w))

    def run(x):
        primal = x if moved == "an argument" else w
        with tf.autodiff.ForwardAccumulator(primal, tf.ones_like(primal)) as accumulator:
            y = f(x, recompute=True)
        return accumulator.jvp(y)

    with pytest.raises(LookupError, match="cannot be differentiated again"):
        WAYS[way](run)(tf.constant(X))


def test_an_update_behind_an_operation_on_the_variable_itself(w):
    """x * w reads w where Python does not see it."""
    f = sparse_attention.recomputable(lambda x: x * w)
    with tf.GradientTape() as tape:
        y = f(tf.constant(X), recompute=True)
    w.assign_add(tf.ones(4))
    with pytest.raises(ValueError, match=r"the variable Variable:0 of shape \(4,\) was updated between"):
        tape.gradient(y, w)


def test_a_vectorized_jacobian_is_taken_in_a_function(w):
    f = sparse_attention.recomputable(lambda x: tf.sin(x * w))

    def jacobian(x, recompute):
        with tf.GradientTape(persistent=True) as tape:
            y = f(x, recompute=recompute)
        return tape.jacobian(y, w)

    x = tf.constant(X)
    plain, again = (tf.function(jacobian)(x, recompute) for recompute in (False, True))
    np.testing.assert_allclose(again, plain, rtol=1e-5)
    with pytest.raises(ValueError, match="experimental_use_pfor") as error:
        jacobian(x, True)
    assert "ran eagerly was taken inside a tf.function" in str(error.value.__cause__)


@either
def test_a_function_of_tensorflow_around_the_decorated_one(decorate, w):
    class Block(tf.Module):
        @decorate
        def bend(self, x, twice=False):
            return tf.sin(x * w) * (2.0 if twice else 1.0)

    block = Block()
    for call in (
        tf.function(block.bend),
        tf.function(partial(block.bend, twice=True)),
        tf.function(decorate(lambda x, **kwargs: tf.sin(x * w))),
    ):
        assert_same_gradients(
            "eager", lambda x, recompute, f=call: tf.reduce_sum(f(x, recompute=recompute)), w
        )


IMAGES = tf.random.stateless_normal([1, 9, 9, 2], [1, 2])
LOST = {
    "tf.py_function": lambda x: tf.py_function(lambda y: y * 2, [x], tf.float32),
    "tf.random.gamma": lambda x: tf.random.gamma([], tf.abs(x) + 1),
    "tf.nn.fractional_max_pool without a seed": lambda x: tf.nn.fractional_max_pool(x, [1, 1.4, 1.4, 1])[0],
    "tf.nn.fractional_avg_pool without a seed": lambda x: tf.nn.fractional_avg_pool(x, [1, 1.4, 1.4, 1])[0],
}


@pytest.mark.parametrize("inside", [False, True], ids=["", "inside"])
@pytest.mark.parametrize("name", LOST)
@each_way
@either
def test_what_draws_again_and_has_a_gradient_is_refused(decorate, way, name, inside):
    draw = tf.function(LOST[name]) if inside else LOST[name]
    gamma = inside and name == "tf.random.gamma"  # that it draws is said first
    words = "ran RandomGamma inside" if gamma else f"ran {name}, which would give another result"
    with pytest.raises(ValueError, match=words):
        WAYS[way](lambda x: decorate(lambda x: draw(x * 2))(x, recompute=True))(IMAGES)


@pytest.mark.parametrize("inside", [False, True], ids=["", "inside"])
@pytest.mark.parametrize("pool", [tf.nn.fractional_max_pool, tf.nn.fractional_avg_pool])
@each_way
def test_a_pool_with_a_seed_draws_the_same_again(pool, way, inside):
    draw = (tf.function if inside else lambda f: f)(lambda x: pool(x, [1, 1.4, 1.4, 1], seed=3)[0])
    pooled = sparse_attention.recomputable(lambda x: tf.sin(draw(x)))

    def run(x, recompute):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.reduce_sum(pooled(x, recompute=recompute) ** 2)
        return tape.gradient(y, x)

    plain, again = (WAYS[way](partial(run, recompute=recompute))(IMAGES) for recompute in (False, True))
    np.testing.assert_allclose(again, plain, rtol=1e-5)
    assert np.abs(plain).max() > 1e-3


ONCE = {
    "generator": lambda x, w: (each for each in (x, w)),
    "map": lambda x, w: map(tf.identity, [x, w]),
    "zip": lambda x, w: zip([x, w]),
}


@pytest.mark.parametrize("name", ONCE)
@each_way
@either
def test_what_python_goes_through_once_is_refused(decorate, way, name, w):
    total = decorate(lambda given: tf.add_n([tf.nest.flatten(each)[0] for each in given["parts"]]))

    def run(x, recompute):
        return total({"parts": ONCE[name](x, x * w)}, recompute=recompute)

    np.testing.assert_allclose(WAYS[way](partial(run, recompute=False))(tf.constant(X)), X + X * w.numpy())
    with pytest.raises(
        ValueError, match=rf"is a {name}, which can be gone through once, .*; give it as a list"
    ):
        WAYS[way](partial(run, recompute=True))(tf.constant(X))


@pytest.mark.parametrize("used", [(0,), (1,), (2,), (0, 2)])
@each_way
@either
def test_what_only_other_results_depend_on_has_no_gradient(decorate, way, used):
    """None, not zeros, with which an optimizer would go on moving it."""
    weights = [tf.Variable([[0.5, 1.0]]), tf.Variable([[2.0, 0.1]]), tf.Variable([[1.0, 3.0]])]
    heads = decorate(
        lambda x: [tf.sin(x[:, :1] @ weights[0]), tf.cos(x[:, 1:2] @ weights[1]), x[:, :2] * weights[2]]
    )

    def run(x, recompute):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            results = heads(x, recompute=recompute)
            losses = [tf.reduce_sum(results[each] ** 2) for each in used]
            total = tf.add_n(losses)
        passes = [tape.gradient(loss, [x, *weights]) for loss in (total, *losses, total)]
        known.append([[g is None for g in each] for each in passes])
        return [g for each in passes for g in each if g is not None]

    known: list = []
    plain, again = (
        WAYS[way](partial(run, recompute=recompute))(tf.constant(X)) for recompute in (False, True)
    )
    assert known[0] == known[1] and known[0][0][1:] == [number not in used for number in range(3)]
    for one, other in zip(plain, again, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)


def test_keras_dropout_where_variables_may_be_assigned():
    """blocksparse's, in graphs: the mask of the first run is the second's, and the next call has another."""
    drop = tf.keras.layers.Dropout(0.5)
    half = blocksparse.recomputable(lambda x: drop(x, training=True))

    @tf.function(autograph=False)
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = half(x, recompute=True)
            loss = tf.reduce_sum(y**2)
        return y, tape.gradient(loss, x)

    x, seeds = tf.ones([64]), []
    for _ in range(2):
        y, dx = step(x)
        seeds.append(drop.seed_generator.state.numpy())
        np.testing.assert_array_equal(dx, 4 * y)  # y is 2 or 0 times x
        assert 0 < np.count_nonzero(y) < 64
    assert (seeds[0] != seeds[1]).any()
