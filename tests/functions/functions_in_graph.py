"""Runs every row in one TensorFlow 1 graph, with disable_v2_behavior() ("v1") or without ("v2")."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import tensorflow.compat.v1 as tf
from op_table import ROWS, moved

(tf.disable_v2_behavior if sys.argv[1] == "v1" else tf.disable_eager_execution)()

fetches, wanted = [], []
for row in ROWS:
    directions, weights, slope = moved(row)
    inputs = [
        tf.get_variable(f"x{len(wanted)}_{i}", initializer=np.float32(x)) for i, x in enumerate(row.inputs)
    ]
    y = row.function(*inputs, *row.fixed)
    gradients = tf.gradients(y, inputs, grad_ys=tf.constant(weights, y.dtype))
    fetches.append((y, sum(tf.reduce_sum(g * np.float32(u)) for g, u in zip(gradients, directions))))
    wanted.append((row.truth(*row.inputs, *row.fixed), slope))

with tf.Session() as session:
    session.run(tf.global_variables_initializer())
    for row, got, expected in zip(ROWS, session.run(fetches), wanted):
        for a, b in zip(got, expected):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4, err_msg=row.name)
print(len(ROWS), "right")
