"""bs.recomputable: the same numbers with and without, and computations that really happen twice."""

import gc
import re
import weakref

import numpy as np
import pytest
import tensorflow as tf

import blocksparse as bs

tf1 = tf.compat.v1
INPUT = np.random.RandomState(0).uniform(-1, 1, (4, 8)).astype(np.float32)


@bs.recomputable
def softmaxes(x, times=3):
    for _ in range(times):
        x = tf.nn.softmax(x)
    return x


def count(graph_def, op):
    """Nodes of the graph and its functions; oneDNN renames Softmax to _MklSoftmax."""
    return sum(op in kind for kind in re.findall(r'^\s*op: "(.*)"$', str(graph_def), re.MULTILINE))


LOSSES = {"constant gradient": tf.reduce_sum, "gradient from data": lambda y: tf.reduce_sum(y**2)}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("recompute", [False, True])
def test_ops_left_after_optimisation(loss, recompute):
    with tf.Graph().as_default():
        x = tf1.placeholder(tf.float32, [4, 8])
        y = softmaxes(softmaxes(x, recompute=recompute), recompute=recompute)
        fetches = [y, *bs.gradients(LOSSES[loss](y), [x])]
        with tf1.Session() as session:
            run, options = tf1.RunMetadata(), tf1.RunOptions(output_partition_graphs=True)
            session.run(fetches, {x: INPUT}, options=options, run_metadata=run)
    assert sum(count(graph, "Softmax") for graph in run.partition_graphs) == (12 if recompute else 6)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("recompute", [False, True])
def test_ops_left_by_xla(loss, recompute):
    @tf.function(jit_compile=True)
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = LOSSES[loss](softmaxes(softmaxes(x, recompute=recompute), recompute=recompute))
        return y, tape.gradient(y, x)

    text = step.experimental_get_compiler_ir(tf.constant(INPUT))(stage="optimized_hlo")
    assert text.count(" exponential(") == (12 if recompute else 6)


class Layer:
    """Two dropouts, a captured variable and tensor, an integer and a second output, nested in itself."""

    def __init__(self):
        self.weight = tf.Variable(np.eye(8, dtype=np.float32), name="weight")

    @bs.recomputable
    def __call__(self, x, ids, scale, depth=1):
        y, _ = bs.dropout(tf.tanh(x @ self.weight) * scale, 0.5)
        if depth > 1:
            y, ids = self(y, ids, scale, depth=depth - 1, recompute=True)
        y, _ = bs.dropout(y + tf.gather(self.weight, ids), 0.7)
        return y, ids + 1


def losses(layer, x, recompute):
    y, ids = layer(x, tf.range(4), 2.0, depth=2, recompute=recompute)
    y, _ = layer(y, ids, 1.0, recompute=recompute)
    return tf.reduce_sum(y**3)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "function"])
def test_same_on_a_tape(compiled):
    layer = Layer()

    def step(x, recompute):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = losses(layer, x, recompute)
        return loss, *map(tf.convert_to_tensor, tape.gradient(loss, [x, layer.weight]))

    results = []
    for recompute in (False, True):
        tf.random.set_seed(7)
        bs.set_entropy(np.arange(2))
        run = tf.function(step) if compiled else step
        results.append(run(tf.constant(INPUT), recompute))
    for plain, again in zip(*results):
        np.testing.assert_allclose(plain, again, rtol=1e-5)
    assert np.abs(results[0][1]).max() > 0.1


@pytest.mark.parametrize("resource", [False, True])
def test_same_in_a_graph(resource):
    """Variables made inside, tensors from outside, tf.gradients as well as bs.gradients."""

    @bs.recomputable
    def block(x, name, outside):
        with tf1.variable_scope(name):
            w = tf1.get_variable("w", [8, 8], initializer=tf.initializers.Identity(), use_resource=resource)
            w16 = bs.float_cast(w, tf.float16, dx_dtype=tf.float16)
            y = tf.cast(tf.tanh(tf.cast(x, tf.float16) @ w16), tf.float32)
            return bs.dropout(y * outside, 0.8)[0]

    results = []
    for recompute in (False, True):
        np.random.seed(0)
        with tf.Graph().as_default():
            bs.set_entropy()
            x = tf1.placeholder(tf.float32, [4, 8])
            outside = tf.exp(x)
            y = x
            for name in "ab":
                y = block(y, name, outside, recompute=recompute)
            wanted = [x, outside, *tf1.trainable_variables()]
            fetches = [y, *bs.gradients(y**2, wanted), *tf.gradients(y**2, wanted)]
            assert [v.name for v in tf1.trainable_variables()] == ["a/w:0", "b/w:0"]
            assert [g.dtype for g in fetches[3:5]] == [tf.float16] * 2
            with tf1.Session() as session:
                session.run(tf1.global_variables_initializer())
                results.append(session.run(fetches, {x: INPUT}))
    for plain, again in zip(*results):
        np.testing.assert_allclose(plain, again, rtol=1e-3)
    assert 0 < np.mean(results[0][0] == 0) < 0.5


@pytest.fixture
def loops_of_tensorflow_1():
    tf1.disable_control_flow_v2()
    yield
    tf1.enable_control_flow_v2()


def test_loops_of_tensorflow_1(loops_of_tensorflow_1):
    rows = bs.recomputable(lambda x: tf.map_fn(tf.nn.softmax, x))
    with tf.Graph().as_default(), tf1.Session() as session:
        x = tf1.placeholder(tf.float32, [4, 8])
        (plain,), (again,) = (bs.gradients(rows(x, recompute=r) ** 2, [x]) for r in (False, True))
        plain, again = session.run([plain, again], {x: INPUT})
        np.testing.assert_allclose(plain, again, rtol=1e-5)
        assert np.abs(plain).max() > 1e-3
        inside = [tf.map_fn(lambda row, r=r: softmaxes(row, recompute=r), x) for r in (False, True)]
        plain, again = session.run([tf.gradients(y**2, x)[0] for y in inside], {x: INPUT})
        np.testing.assert_allclose(plain, again, rtol=1e-5)
        assert np.abs(plain).max() > 1e-6


def test_a_loaded_graph_has_the_gradient():
    with tf.Graph().as_default() as graph:
        x = tf1.placeholder(tf.float32, [4, 8], name="x")
        y = tf.identity(softmaxes(x, recompute=True), name="y")
        (dx,) = tf.gradients(y**2, x)
        definition = graph.as_graph_def()
        with tf1.Session() as session:
            expected = session.run(dx, {x: INPUT})
    with tf.Graph().as_default() as graph, tf1.Session() as session:
        x, y = tf.import_graph_def(definition, return_elements=["x:0", "y:0"])
        (dx,) = tf.gradients(y**2, x)
        np.testing.assert_allclose(session.run(dx, {x: INPUT}), expected, rtol=1e-5)
        assert np.abs(expected).max() > 1e-6


def test_gradients_are_dense_and_none_where_nothing_leads():
    with tf.Graph().as_default():
        table, other = tf.ones([5, 2]), tf.ones([3])
        dense, none = bs.gradients(tf.gather(table, [1, 1]), [table, other])
        assert dense.shape == [5, 2] and none is None
    with pytest.raises(RuntimeError, match=r"tf\.GradientTape"):
        bs.gradients(tf.ones([]), [tf.ones([])])


def test_xla_keeps_the_same_entries():
    """dy/dx is positive exactly where the forward pass kept an entry."""

    @bs.recomputable
    def drop(x):
        return bs.dropout(tf.exp(x), 0.5)[0]

    @tf.function(jit_compile=True)
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = drop(x, recompute=True)
        return y, tape.gradient(y, x)

    y, dx = step(tf.ones([64, 64]))
    np.testing.assert_allclose(dx, y, rtol=1e-6)
    assert 0.4 < np.mean(y.numpy() == 0) < 0.6


@pytest.mark.parametrize("recompute", [False, True])
def test_a_tape_forgets_what_is_recomputed(recompute):
    inside = []

    @bs.recomputable
    def block(x):
        y = tf.tanh(x)
        inside.append(weakref.ref(y))
        return tf.exp(y) * y

    with tf.GradientTape() as tape:
        x = tf.Variable(INPUT)
        y = block(x * 1.0, recompute=recompute)
    gc.collect()
    assert (inside[0]() is None) == recompute
    assert tape.gradient(y, x) is not None and len(inside) == 1 + recompute
