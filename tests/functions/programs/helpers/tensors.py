"""A module of the program."""

import tensorflow as tf


def double(x):
    with tf.variable_scope("double"):
        return x + x
