"""Every function against NumPy in float64: eagerly, under tf.function and in TensorFlow 1 graphs."""

import functools
import subprocess
import sys
from pathlib import Path

import functions_cases
import numpy as np
import pytest
import tensorflow as tf
from functions_cases import CASES

HERE = Path(__file__).parent
EPSILON = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def value_and_gradient(function, inputs, weights):
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        y = function(*inputs)
        loss = tf.reduce_sum(weights * tf.cast(y, tf.float32))
    return y, tape.gradient(loss, inputs)


@pytest.mark.parametrize(
    "dtype, compiled", [("float32", False), ("float32", True), ("float16", False), ("bfloat16", False)]
)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_value_and_gradient(case, dtype, compiled):
    directions, weights, _ = functions_cases.moved(case)
    inputs = [tf.cast(x, dtype) for x in case.inputs]
    quantised = functions_cases.Case(
        case.name, case.function, case.oracle, tuple(x.numpy().astype(np.float64) for x in inputs)
    )
    slope = functions_cases.moved(quantised)[2]
    expected = case.oracle(*quantised.inputs)
    run = functools.partial(value_and_gradient, case.function)
    y, gradients = (tf.function(run) if compiled else run)(inputs, tf.constant(weights, tf.float32))
    loss_dtype = "float32" if case.name == "softmax_cross_entropy" else dtype
    assert y.dtype == loss_dtype and y.shape == expected.shape
    error = 4 * EPSILON[dtype]
    np.testing.assert_allclose(y.numpy().astype(np.float64), expected, rtol=error, atol=error)
    assert all(g.shape == x.shape and g.dtype == x.dtype for g, x in zip(gradients, inputs))
    along = sum(np.sum(g.numpy().astype(np.float64) * u) for g, u in zip(gradients, directions))
    size = sum(np.sum(np.abs(g.numpy().astype(np.float64) * u)) for g, u in zip(gradients, directions))
    assert abs(along - slope) <= error * (size + 1) + 1e-6


@pytest.mark.parametrize("mode", ["v1", "v2"])
def test_same_in_graphs(mode):
    """disable_v2_behavior changes what `==`, shapes and variables mean, so it needs a process of its own."""
    program = [sys.executable, str(HERE / "functions_in_graph.py"), mode]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(len(CASES)), "right"]
