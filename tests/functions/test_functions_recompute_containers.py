"""What a recomputed function does to lists and dicts among its arguments, and what it holds that is no number."""

import numpy as np
import pytest
import tensorflow as tf
from recompute_ways import WAYS, assert_the_same, derived, either

import sparse_attention

X = [0.5, -1.0, 2.0]
TABLE = tf.constant([1.0, 2.0, 2.0])
RAGGED = tf.RaggedTensor.from_row_splits(X, [0, 1, 3])
each_way = pytest.mark.parametrize("way", WAYS)


def put(given):
    given["h"] = tf.sin(given["h"])
    return given["h"] * 2


def push(given):
    given.append(tf.sin(given[-1]))
    return given[-1] * 2


def deep(given):
    inner, sums = given["in"], given["in"]["sums"]
    sums.append(tf.reduce_sum(inner["h"] ** 2))
    inner["was"], inner["h"] = inner["h"], tf.sin(inner["h"])
    given.pop("gone")
    sums[0], given["again"] = sums[1], sums
    return inner["h"] * 2


@each_way
@either
def test_a_dict_is_changed(decorate, way):
    def loss(x, recompute):
        given = dict(h=x)
        y = decorate(put)(given, recompute=recompute)
        return tf.reduce_sum(y**2) + tf.reduce_sum(given["h"] ** 3)

    assert_the_same(way, loss, X)


@each_way
@either
@pytest.mark.parametrize("function, times", [(push, 1), (lambda one, other: push(one) * other[0], 2)])
def test_a_list_grows(decorate, way, function, times):
    """times: how often it is given."""

    def loss(x, recompute):
        given = [x]
        y = decorate(function)(*[given] * times, recompute=recompute)
        assert len(given) == 2 and given[0] is x
        return tf.reduce_sum(y**2) + tf.reduce_sum(given[1] ** 3)

    assert_the_same(way, loss, X)


@each_way
@either
def test_what_is_nested_is_changed_in_place(decorate, way):
    def loss(x, recompute):
        sums, untouched = [x[0]], (x, [x])
        given = {"in": {"sums": sums, "h": x}, "gone": 1}
        y = decorate(lambda given, _: deep(given))(given, untouched, recompute=recompute)
        assert given["in"]["sums"] is sums is given["again"] and len(sums) == 2 and sums[0] is sums[1]
        assert "gone" not in given and given["in"]["was"] is x and untouched[1][0] is x
        return tf.reduce_sum(y**2) + tf.add_n(sums) + tf.reduce_sum(given["in"]["h"] ** 3)

    assert_the_same(way, loss, X)


@pytest.mark.parametrize("way", ["eager", "graph"])
@either
def test_once_only(decorate, way):
    """The second run changes nothing of the caller's."""
    kept = []

    def loss(x, recompute):
        kept.append([x])
        return tf.reduce_sum(decorate(push)(kept[-1], recompute=recompute) ** 2)

    derived(way, loss, X, (), True)
    assert [len(each) for each in kept] == [2]


@each_way
@either
def test_what_it_fills_can_be_used_once_the_gradient_was_taken(decorate, way):
    """Containers that held no tensor as well: auxiliary losses, which a training step returns."""

    def step(x, auxiliary, seen):
        h = tf.sin(x)
        auxiliary["loss"] = tf.reduce_sum(h**2)
        seen.append(tf.reduce_max(h))
        return h * 2

    def run(recompute):
        def train(x):
            auxiliary, seen = {}, []
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = decorate(step)(x, auxiliary, seen, recompute=recompute)
                loss = tf.reduce_sum(y**2) + auxiliary["loss"] * seen[0]
            return loss, tape.gradient(loss, x), auxiliary["loss"], tf.stack(seen)

        return WAYS[way](train)(tf.constant(X))

    for plain, again in zip(run(False), run(True), strict=True):
        np.testing.assert_allclose(again, plain, rtol=1e-5)


@each_way
@either
@pytest.mark.parametrize(
    "function",
    [
        lambda x: tf.sin(x) * tf.strings.to_number(tf.constant("2.5")),
        lambda x: (tf.sin(x), tf.constant("a"))[0],
        lambda x: tf.where(tf.constant(["a", "b", "a"]) == "a", tf.sin(x), x),
    ],
)
def test_strings(decorate, way, function):
    assert_the_same(
        way, lambda x, recompute: tf.reduce_sum(decorate(function)(x, recompute=recompute) ** 2), X
    )


@each_way
@either
def test_results_that_were_made_outside(decorate, way):
    def loss(x, recompute):
        y, table = decorate(lambda x: (tf.sin(x), TABLE))(x, recompute=recompute)
        ragged = decorate(lambda x: RAGGED.with_flat_values(tf.sin(x)))(x, recompute=recompute)
        return (
            tf.reduce_sum(y**2 * table) + tf.reduce_sum(ragged.flat_values**3) + tf.reduce_sum(ragged[1] ** 2)
        )

    assert_the_same(way, loss, X)


def summed(draw):
    numbers = tf.data.Dataset.range(3).map(
        lambda n: tf.cast(n, tf.float32) + (tf.random.normal([]) if draw else 0.0)
    )
    return numbers.reduce(0.0, lambda a, b: a + b)


@pytest.mark.parametrize("way", ["eager", "graph"])
@either
def test_a_dataset_inside(decorate, way):
    """Its functions have other names in the second run. One that draws is refused: the draws cannot be kept."""

    def loss(draw):
        again = decorate(lambda x: tf.sin(x) * summed(draw))
        return lambda x, recompute: tf.reduce_sum(again(x, recompute=recompute) ** 2)

    assert_the_same(way, loss(False), X)
    with pytest.raises(ValueError, match="where the draw cannot be kept"):
        derived(way, loss(True), X, (), True)


@pytest.mark.parametrize("way", ["eager", "graph"])
def test_other_functions_of_a_dataset_are_told(way):
    """What differs in a function among an operation's attributes is a difference."""
    times = [2.0, 3.0]

    @sparse_attention.recomputable
    def again(x):
        factor = times.pop(0)
        return tf.sin(x) * tf.data.Dataset.range(3).reduce(
            0.0, lambda a, b: a + factor * tf.cast(b, tf.float32)
        )

    with pytest.raises(ValueError, match="did not do the same"):
        derived(way, lambda x, recompute: tf.reduce_sum(again(x, recompute=recompute) ** 2), X, (), True)
