"""The optimizers, clipping and averages against NumPy, eagerly and in TensorFlow 1 graphs."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import blocksparse as bs

tf1 = tf.compat.v1
STEPS = 4
random = np.random.RandomState(3)
SHAPES = [(128, 80), (1, 6), (5,)]
START = [random.uniform(-1, 1, shape) for shape in SHAPES]
GRADS = [[random.uniform(-1, 1, shape) * 0.1**step for shape in SHAPES] for step in range(STEPS)]
SCALE = 0.5


def clip(grads):
    norm = np.sqrt(sum(np.sum((g * SCALE) ** 2) for g in grads))
    return 1 / max(norm, 1)


def adam(p, grads, clip_sigmas=0.0, b1=0.9, b2=0.99, rate=0.1, epsilon=1e-8):
    m = v = 0
    for t, g in enumerate(grads, 1):
        v = b2 * v + (1 - b2) * g**2
        g = np.clip(g, -clip_sigmas * np.sqrt(v), clip_sigmas * np.sqrt(v)) if clip_sigmas else g
        m = b1 * m + (1 - b1) * g
        p = p - rate * np.sqrt(1 - b2**t) / (1 - b1**t) * m / (np.sqrt(v) + epsilon)
    return p


def adafactor(p, grads, b2=0.99, rate=0.1, epsilon=1e-30):
    c = r = 0
    for t, g in enumerate(grads, 1):
        decay = b2 * (1 - b2**t) / (1 - b2 ** (t + 1))
        c = decay * c + (1 - decay) * np.mean(g.reshape(-1, g.shape[-1]) ** 2 + epsilon, axis=0)
        x = g / np.sqrt(c)
        if g.ndim == 2 and len(g) > 1:
            r = decay * r + (1 - decay) * np.mean(g**2 + epsilon, axis=1, keepdims=True)
            x = x / np.sqrt(r / r.mean())
        p = p - rate * x / max(1, np.sqrt(np.mean(x**2)))
    return p


OPTIMIZERS = {
    "adam": (adam, lambda **more: bs.AdamOptimizer(0.1, beta2=0.99, **more), 1e-5),
    "adam clip_sigmas": (
        lambda p, grads: adam(p, grads, clip_sigmas=3.0),
        lambda **more: bs.AdamOptimizer(0.1, beta2=0.99, clip_sigmas=3.0, **more),
        1e-5,
    ),
    "adam fp16": (adam, lambda **more: bs.AdamOptimizer(0.1, beta2=0.99, fp16=True, **more), 1e-3),
    "adafactor": (adafactor, lambda **more: bs.AdafactorOptimizer(0.1, beta2=0.99, **more), 1e-5),
}


def expected(oracle):
    scaled = [[g * SCALE * clip(grads) for g in grads] for grads in GRADS]
    return [oracle(p, [grads[i] for grads in scaled]) for i, p in enumerate(START)]


@pytest.mark.parametrize("traced", [False, True], ids=["eager", "function"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_eager(name, traced):
    oracle, make, error = OPTIMIZERS[name]
    variables = [tf.Variable(p, dtype=tf.float32) for p in START]
    state = {}
    optimizer = make(norm_scale=lambda: state["norm_scale"], grad_scale=SCALE)

    def step(grads):
        _, state["norm_scale"] = bs.clip_by_global_norm(grads, grad_scale=SCALE)
        optimizer.apply_gradients(zip(grads, variables))

    run = tf.function(step) if traced else step
    for grads in GRADS:
        run([tf.constant(g, tf.float32) for g in grads])
    for variable, p in zip(variables, expected(oracle)):
        np.testing.assert_allclose(variable, p, rtol=error, atol=error)


@pytest.mark.parametrize("resource", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_graph(name, resource):
    """A step whose norm is not finite, before the third, changes nothing but the number of steps."""
    oracle, make, error = OPTIMIZERS[name]
    with tf.Graph().as_default():
        variables = [
            tf1.get_variable(f"p{i}", initializer=np.float32(p), use_resource=resource)
            for i, p in enumerate(START)
        ]
        grads = [tf1.placeholder(tf.float32, shape) for shape in SHAPES]
        norm, norm_scale = bs.clip_by_global_norm(grads, grad_scale=SCALE)
        step = make(norm_scale=norm_scale, grad_scale=tf.constant(SCALE)).apply_gradients(
            zip(grads, variables)
        )
        with tf1.Session() as session:
            session.run(tf1.global_variables_initializer())
            for values in GRADS:
                seen = session.run([norm, norm_scale, step], dict(zip(grads, values)))
                np.testing.assert_allclose(seen[1], clip(values), rtol=1e-5)
                np.testing.assert_allclose(clip(values), 1 / max(seen[0], 1), rtol=1e-5)
            after = session.run(variables)
            bad = [np.where(np.arange(g.size).reshape(g.shape) == 3, np.inf, g) for g in GRADS[0]]
            state = session.run(tf1.global_variables())
            assert session.run([norm_scale, step], dict(zip(grads, bad)))[0] == 0
            for variable, old, new in zip(tf1.global_variables(), state, session.run(tf1.global_variables())):
                if "power" not in variable.name:
                    np.testing.assert_array_equal(old, new)
    for variable, p in zip(after, expected(oracle)):
        np.testing.assert_allclose(variable, p, rtol=error, atol=error)


def test_fp16_keeps_small_second_moments():
    """Squares of gradients of 1e-6 would vanish in float16."""
    plain, half = (tf.Variable(tf.zeros([128, 64])) for _ in range(2))
    for variable, fp16 in ((plain, False), (half, True)):
        optimizer = bs.AdamOptimizer(0.1, fp16=fp16)
        for _ in range(3):
            optimizer.apply_gradients([(tf.fill([128, 64], 1e-6), variable)])
        slots = [optimizer.get_slot(variable, name) for name in ("Mean", "Var")]
        assert {slot.dtype for slot in slots} == {tf.float16 if fp16 else tf.float32}
    assert np.max(plain) < -0.2
    np.testing.assert_allclose(plain, half, rtol=1e-3)


def test_lazy_rows_and_sparse_gradients():
    with tf.Graph().as_default():
        table = tf1.get_variable("table", initializer=tf.ones([4, 3]))
        grad = tf1.placeholder(tf.float32, [4, 3])
        grad.lazy = True
        step = bs.AdamOptimizer(0.1).apply_gradients([(grad, table)])
        with tf1.Session() as session:
            session.run(tf1.global_variables_initializer())
            for row in (0, 2):
                session.run(step, {grad: np.eye(4)[:, row : row + 1] * np.ones(3)})
            values = session.run(table)
    assert (values[[1, 3]] == 1).all() and (values[[0, 2]] < 1).all()
    np.testing.assert_allclose(values[0], 0.9, rtol=1e-5)  # one step: what came later left it alone

    table = tf.Variable(tf.ones([4, 3]))
    slices = tf.IndexedSlices(tf.ones([2, 3]), tf.constant([1, 1]), tf.constant([4, 3]))
    bs.AdamOptimizer(0.1).apply_gradients([(slices, table)])
    np.testing.assert_allclose(table[:, 0], [1, 0.9, 1, 1], rtol=1e-5)


def test_float16_gradients_and_filters():
    grads = [tf.constant([np.inf, 1, -3], tf.float16), tf.constant([np.nan, 2], tf.bfloat16)]
    assert bs.clip_by_global_norm(grads)[1] == 0
    norm, scale = bs.clip_by_global_norm(grads, clip_norm=2.0, saturate=2.0, zero_nans=True)
    np.testing.assert_allclose([norm, scale], [np.sqrt(4 + 1 + 4 + 4), 2 / np.sqrt(13)], rtol=1e-6)
    np.testing.assert_allclose(
        bs.global_norm(grads, 0.5, zero_infs=True, zero_nans=True), np.sqrt(14) / 2, rtol=1e-6
    )
    variable = tf.Variable([1.0, 1.0, 1.0])
    bs.AdamOptimizer(0.1, saturate=65504.0).apply_gradients([(grads[0], variable)])
    np.testing.assert_allclose(variable, [0.9, 0.9, 1.1], rtol=1e-5)


def test_average_in_a_graph():
    with tf.Graph().as_default():
        with tf1.variable_scope("model", use_resource=True):
            p = tf1.get_variable("p", initializer=np.float32([1, 2]))
            q = tf1.get_variable("q", initializer=np.float32([3]))
        cast = bs.float_cast(p, tf.float16, dx_dtype=tf.float16)
        ema = bs.Ema(decay=0.9, fp16=True)
        with tf.control_dependencies([p.assign_add([1, 1]), q.assign_add([1])]):
            update = ema.apply([p, q])
        assert ema.average(p).name == "model/p/Ema/ema:0" and ema.average(cast) is ema.average(p)
        assert [ema.average(x).dtype.base_dtype for x in (p, q)] == [tf.float16, tf.float32]
        assert ema.average(tf.ones([2])) is None
        with pytest.raises(TypeError, match="param is a str, but a variable or, in a graph, a tensor"):
            ema.average("p")
        with tf1.Session() as session:
            session.run(tf1.global_variables_initializer())
            session.run(update)
            session.run(update)
            np.testing.assert_allclose(session.run(ema.average(p)), [1.29, 2.29], rtol=2e-3)
            np.testing.assert_allclose(session.run(ema.average(q)), [3.29], rtol=1e-6)


@pytest.mark.parametrize("make", [tf.Variable, keras.Variable], ids=["TensorFlow's", "Keras's"])
@pytest.mark.parametrize("traced", [False, True], ids=["eager", "function"])
def test_average_of_a_variable_outside_of_graphs(make, traced):
    p, ema = make([1.0]), bs.Ema(decay=0.9)

    def update():
        ema.apply([p])

    step = tf.function(update) if traced else update
    step()
    p.assign([2.0])
    step()
    np.testing.assert_allclose(ema.average(p), [1.1], rtol=1e-6)
    bs.AdamOptimizer(0.1).apply_gradients([(tf.ones([1]), p)])
    np.testing.assert_allclose(tf.convert_to_tensor(p), [1.9], rtol=1e-4)


def test_average_of_a_tensor_cast_from_a_variable_in_a_function():
    p, ema, found = tf.Variable([1.0]), bs.Ema(decay=0.9), []
    ema.apply(p)
    tf.function(lambda: found.append(ema.average(tf.cast(p, tf.float16))))()
    assert found == [ema.average(p)]
    with pytest.raises(TypeError, match="param is a EagerTensor, but a variable or, in a graph, a tensor"):
        ema.average(tf.cast(p, tf.float16))
    with pytest.raises(TypeError, match="params has a EagerTensor; give the variables"):
        ema.apply([tf.ones([1])])


def test_what_no_update_can_come_of_is_refused_or_harmless():
    p, whole = tf.Variable([1.0]), tf.Variable([5])
    nothing = [tf.zeros([1])]
    assert bs.clip_by_global_norm(nothing, 0.0)[1] == 0 and bs.clip_by_global_norm(iter(nothing))[0] == 0
    bs.AdamOptimizer(0.1, norm_scale=bs.clip_by_global_norm(nothing, 0.0)[1]).apply_gradients(
        [(nothing[0], p)]
    )
    np.testing.assert_array_equal(p, [1.0])
    with pytest.raises(TypeError, match="is int32; an update is no whole number"):
        bs.AdamOptimizer(0.1).apply_gradients([(tf.constant([1]), whole)])
    with pytest.raises(ValueError, match=r"saturate is -1\.0; it has to be the largest size"):
        bs.filter_tensor(p, saturate=-1.0)


def test_errors():
    with pytest.raises(
        ValueError, match=r"Variable:0 is \(2, 2, 2\), but Adafactor takes 1 or 2 axes: .* AdamOptimizer"
    ):
        bs.AdafactorOptimizer().apply_gradients([(tf.ones([2, 2, 2]), tf.Variable(tf.ones([2, 2, 2])))])
    with pytest.raises(ValueError, match=r"grads has no tensor at \[1\]: leave out"):
        bs.clip_by_global_norm([tf.ones([2]), None])
