"""Runs every case in one TensorFlow 1 graph, with disable_v2_behavior() ("v1") or without ("v2")."""

import os
import sys

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import tensorflow.compat.v1 as tf
from functions_cases import CASES, moved

(tf.disable_v2_behavior if sys.argv[1] == "v1" else tf.disable_eager_execution)()

fetches, wanted = [], []
for case in CASES:
    directions, weights, slope = moved(case)
    inputs = [
        tf.get_variable(f"x{len(wanted)}_{i}", initializer=np.float32(x)) for i, x in enumerate(case.inputs)
    ]
    y = case.function(*inputs)
    gradients = tf.gradients(y, inputs, grad_ys=tf.constant(weights, tf.float32))
    fetches.append((y, sum(tf.reduce_sum(g * np.float32(u)) for g, u in zip(gradients, directions))))
    wanted.append((case.oracle(*case.inputs), slope))

with tf.Session() as session:
    session.run(tf.global_variables_initializer())
    for case, got, expected in zip(CASES, session.run(fetches), wanted):
        for a, b in zip(got, expected):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4, err_msg=case.name)
print(len(CASES), "right")
