"""Importing again in one process, as notebooks do: nothing is refused, and what was made before goes on working."""

import subprocess
import sys

import pytest

PROGRAM = """
import importlib
import sys

import keras
import numpy as np
import tensorflow as tf

OURS = ("blocksparse", "sparse_attention")
x = np.random.default_rng(0).standard_normal([2, 64, 16]).astype(np.float32)


def ours():
    return [name for name in sys.modules if name.partition(".")[0] in OURS]


class Made:
    "What a user made, and what it gave then."

    def __init__(self):
        import blocksparse as bs
        import sparse_attention as sa

        self.sa, self.bs = sa, bs
        self.pattern = bs.Pattern(lambda q, k: abs(q - k) < 12, reach=12, ahead=12)
        self.bst = bs.from_mask(self.pattern, 64, 64, 2, 8)
        self.layer = sa.SparseSelfAttention(2, "local+strided", 8, 8)
        self.layer.build((None, 64, 16))
        self.recomputed = sa.recomputable(lambda q, w: tf.nn.gelu(q @ w))
        self.traced = tf.function(self.attend)
        self.given = self.run()

    def attend(self, q):
        y = self.bst.attention(q, q, q) + self.sa.blocksparse_attention_impl(q, q, q, 2, "local", 8, 8)
        return self.layer(y) + self.recomputed(q, tf.eye(16), recompute=True)

    def run(self):
        q, found = tf.constant(x), []
        for attend in (self.attend, self.traced):
            with tf.GradientTape() as tape:
                tape.watch(q)
                y = attend(q)
            found += [y, tape.gradient(y, q, q)]
        found.append(self.in_graph())
        return [np.array(value) for value in found]

    def in_graph(self):
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            q = tf.constant(x)
            y = self.bs.recomputable(lambda q: tf.nn.gelu(self.bst.attention(q, q, q)))(q)
            return session.run(self.bs.gradients(y, [q])[0])

    def check(self):
        for got, want in zip(self.run(), self.given):
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


def save_and_load(layer):
    model = keras.Sequential([keras.Input((64, 16)), layer])
    model.save(sys.argv[2])
    np.testing.assert_array_equal(keras.saving.load_model(sys.argv[2])(x), model(x))


def reload():
    for name in ours():
        importlib.reload(sys.modules[name])


def drop():
    for name in ours():
        del sys.modules[name]


first = Made()
{"reload": reload, "drop": drop}[sys.argv[1]]()
first.check()
second = Made()
second.bs.from_mask(first.pattern, 64, 64, 2, 8)
save_and_load(first.layer)
save_and_load(second.layer)
first.check()
"""


@pytest.mark.parametrize("again", ["reload", "drop"])
def test_importing_again(tmp_path, again):
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(tmp_path / "program.py"), again, str(tmp_path / "model.keras")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Warning" not in done.stderr, done.stderr[-4000:]
