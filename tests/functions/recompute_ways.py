"""What tests of recomputed functions share: both decorators, ways of running, and gradients with and without."""

import numpy as np
import pytest
import tensorflow as tf

import blocksparse
import sparse_attention

WAYS = {
    "eager": lambda f: f,
    "graph": lambda f: tf.function(f, autograph=False),
    "xla": lambda f: tf.function(f, autograph=False, jit_compile=True),
}
either = pytest.mark.parametrize("decorate", [sparse_attention.recomputable, blocksparse.recomputable])


def derived(way, loss, x, variables, recompute):
    """loss(x, recompute) and its gradients, for x and the variables."""

    def run(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = loss(x, recompute)
        return [y, *tape.gradient(y, [x, *variables])]

    return WAYS[way](run)(tf.constant(x))


def assert_the_same(way, loss, x, *variables):
    for plain, again in zip(
        *(derived(way, loss, x, variables, recompute) for recompute in (False, True)), strict=True
    ):
        np.testing.assert_allclose(again, plain, rtol=1e-5)
        assert np.abs(plain).max() > 1e-3
