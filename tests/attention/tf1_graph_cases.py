"""recomputable in TensorFlow 1 graphs, with variables of both kinds; run in a process of its own."""

import numpy as np
import tensorflow.compat.v1 as tf

from sparse_attention import attention_impl, blocksparse_attention_impl, recomputable

tf.disable_v2_behavior()
tf.config.experimental.enable_tensor_float_32_execution(False)


def check(resource):
    """Captured variables and tensors, dropout, nested use, an unknown batch, under a session."""
    with tf.Graph().as_default(), tf.Session() as session, tf.variable_scope("v", use_resource=resource):
        random = np.random.default_rng(0)
        w = tf.get_variable("w", initializer=random.standard_normal((8, 8)).astype(np.float32))
        x = tf.placeholder(tf.float32, [None, 8])
        scale = tf.exp(x)
        mask = []

        @recomputable("inner")
        def inner(y):
            return tf.tanh(tf.matmul(y, w)) * scale

        @recomputable("block")
        def block(y, recompute_inner):
            kept = tf.nn.dropout(tf.ones_like(y), rate=0.5)
            mask.append(kept)
            return inner(y, recompute=recompute_inner) * kept

        y = block(x, True, recompute=True)
        grads = tf.gradients(tf.reduce_sum(y**2), [x, w])
        plain = inner(x) * mask[0]
        expected = tf.gradients(tf.reduce_sum(plain**2), [x, w])
        session.run(tf.global_variables_initializer())
        feed = {x: random.standard_normal((16, 8))}
        found = session.run([y, *grads, plain, *expected], feed)
        for got, want in zip(found[:3], found[3:]):
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
        assert 0 < (found[0] == 0).mean() < 1


def attention():
    """Dense and block-sparse attention with placeholders of unknown batch, segments and recompute=True."""
    with tf.Graph().as_default(), tf.Session() as session:
        q, ids = tf.placeholder(tf.float32, [None, 64, 32]), tf.placeholder(tf.int32, [None, 64])
        sizes = {"local_attn_ctx": 16, "num_verts": 2, "vertsize": 1, "blocksize": 8}
        for mode in ("local", "fixed", "local+chunk"):
            out = [
                f(q, q, q, 4, mode, recompute=True, segment_ids=ids, **sizes)
                for f in (attention_impl, blocksparse_attention_impl)
            ]
            grads = [tf.gradients(tf.reduce_sum(y**2), q)[0] for y in out]
            random = np.random.default_rng(0)
            feed = {q: random.standard_normal((2, 64, 32)), ids: np.sort(random.integers(-1, 3, (2, 64)), 1)}
            dense, sparse, d_dense, d_sparse = session.run([*out, *grads], feed)
            np.testing.assert_allclose(sparse, dense, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(d_sparse, d_dense, rtol=1e-4, atol=1e-4)


def loops(resource):
    """Recomputation in the loops of TensorFlow 1, and loops in recomputed functions."""

    def repeat(step, x):
        return tf.while_loop(lambda i, _: i < 3, lambda i, x: (i + 1, step(x)), (0, x))[1]

    with tf.Graph().as_default(), tf.Session() as session, tf.variable_scope("v", use_resource=resource):
        random = np.random.default_rng(0)
        w = tf.get_variable("w", initializer=random.standard_normal((8, 8)).astype(np.float32) / 4)
        x = tf.placeholder(tf.float32, [None, 8])
        scale = tf.exp(x)

        @recomputable
        def f(x):
            return tf.tanh(tf.tensordot(x, w, 1)) * (scale if x.shape.rank == 2 else 1.0)

        @recomputable
        def rows(x):
            return tf.map_fn(f, x)

        def every_way(recompute):
            def again(x):
                return f(x, recompute=recompute)

            yield repeat(again, x)
            yield repeat(lambda x: again(tf.matmul(x, w)), x)  # the loop has taken w in before
            yield repeat(lambda x: tf.cond(tf.reduce_sum(x) > -1e9, lambda: again(x), lambda: x), x)
            yield repeat(lambda x: repeat(again, x), x)
            yield tf.map_fn(again, x)
            yield rows(x, recompute=recompute)

        found = [[y, *tf.gradients(tf.reduce_sum(y**2), [x, w])] for r in (True, False) for y in every_way(r)]
        session.run(tf.global_variables_initializer())
        found = session.run(found, {x: random.standard_normal((4, 8))})
        ways = len(found) // 2
        for pair in zip(found[:ways], found[ways:]):
            for got, want in zip(*pair):
                np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)

        def captured(x, recompute):
            factor = tf.exp(x) / 9
            return recomputable(lambda x: x * factor)(x, recompute=recompute)

        for step in (captured, lambda x, recompute: rows(x, recompute=recompute) / 4):
            slopes = [
                tf.gradients(repeat(lambda x, f=step, r=recompute: f(x, r), x), x)[0]
                for recompute in (True, False)
            ]
            got, want = session.run(slopes, {x: random.standard_normal((4, 8))})
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
            assert np.any(want)

        masked = recomputable(lambda x: tf.nn.dropout(tf.matmul(x, w), rate=0.5))
        try:
            recomputable(lambda x: repeat(masked, x))(x, recompute=True)
        except ValueError as error:
            assert "draw statelessly" in str(error), error
        else:
            raise AssertionError("accepted a draw in a loop")
        (slope,) = tf.gradients(repeat(lambda x: masked(x, recompute=True), x), x)
        assert session.run(slope, {x: np.ones((4, 8))}).shape == (4, 8)


def variables_inside_are_refused():
    with tf.Graph().as_default():
        f = recomputable(lambda x: x * tf.get_variable("inside", initializer=1.0))
        try:
            f(tf.ones([2]), recompute=True)
        except ValueError as error:
            assert "made or assigned a variable" in str(error)
        else:
            raise AssertionError("a variable made inside was accepted")


for kind in (True, False):
    check(resource=kind)
    loops(resource=kind)
    print("resource" if kind else "reference", kind)
attention()
variables_inside_are_refused()
