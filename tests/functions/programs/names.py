"""What a program of 2019 takes for granted, asserted: `names.py ARGUMENTS` prints them."""

import importlib
import os
import sys

import numpy as np
import tensorflow as tf
import tensorflow.keras.backend
from helpers import tensors
from mpi4py import MPI
from tensorflow.python.framework import ops
from tensorflow.python.ops import variables  # noqa: F401

import blocksparse as bs
import sparse_attention

assert __name__ == "__main__" and sys.modules["__main__"].__dict__ is globals()
assert os.path.basename(sys.argv[0]) == "names.py" and sys.path[0] == os.path.dirname(__file__)

# TensorFlow 1, in every way to import it; the libraries keep their own.
assert not tf.executing_eagerly() and isinstance(tf.zeros([2]).shape[0], tf.Dimension)
assert tensors.tf is tf is importlib.import_module("tensorflow") is __import__("tensorflow")
assert tf.Session is tf.compat.v1.Session and tf.python.framework.ops is ops
assert sparse_attention.attention_impl and sys.modules["sparse_attention.attention"].tf is not tf
assert bs.utils.tf is not tf and hasattr(bs.utils.tf, "lite")
exec("from tensorflow import *", star := {"__name__": "__main__"})
assert star["Session"] is tf.Session and "contrib" not in star

# Names that NumPy dropped.
assert np.float is float and np.int is int and np.object is object and np.product([2, 3]) == 6
assert np.zeros(2, np.bool).dtype == bool and np.asscalar(np.array([4])) == 4 and np.PINF == np.inf
assert np.fromstring(b"ab", dtype=np.uint8).tolist() == [97, 98]
assert np.fromstring("1 2", sep=" ").tolist() == [1, 2]

# One rank.
world = MPI.COMM_WORLD
assert (world.Get_rank(), world.Get_size(), world.rank, world.size) == (0, 1, 0, 1)
assert world.bcast({"a": 1}) == {"a": 1} and world.allgather(3) == [3] and world.allreduce(3, op=MPI.SUM) == 3
received = np.zeros(2)
world.Allreduce(np.ones(2), received)
assert received.tolist() == [1, 1]

# A device that may not be there, with and without a configuration, at the top and in a variable.
with tf.device("/gpu:7"):
    w = tf.get_variable("w", [2], initializer=tf.ones_initializer())
    y = tensors.double(w)
for config in (None, tf.ConfigProto(), tf.ConfigProto(allow_soft_placement=False)):
    with tf.Session(config=config) as session:
        session.run(tf.global_variables_initializer())
        assert session.run(y).tolist() == [2, 2]


def main(_):
    print("ran with", sys.argv[1:])


tf.app.run()
