"""Memory of a training step of 16 residual blocks with and without recompute; a process of its own.

Argument: attention_impl, where whole blocks recompute, or blocksparse_attention_impl, where that alone may.
Prints the peak with, then the peak without, both in MB above what the traced steps held: peaks only grow, so the
second is at least the first.
"""

import sys
from pathlib import Path

import tensorflow as tf

import sparse_attention

sys.path.insert(0, str(Path(__file__).parents[1]))
from peak import peak

BLOCKS, TIME, WIDTH, HEADS = 16, 1024, 256, 4


def weights():
    shapes = [(WIDTH, 3 * WIDTH), (WIDTH, WIDTH), (WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH)]
    return [tf.Variable(tf.random.stateless_normal(shape, (1, 2), stddev=0.02)) for shape in shapes]


def norm(x):
    mean, variance = tf.nn.moments(x, -1, keepdims=True)
    return (x - mean) * tf.math.rsqrt(variance + 1e-5)


def block(attend, matrices):
    qkv, project, first, second = matrices

    def run(x):
        q, k, v = tf.split(norm(x) @ qkv, 3, axis=-1)
        x += attend(q, k, v, HEADS, "all") @ project
        return x + tf.nn.gelu(norm(x) @ first) @ second

    return run


def step_of(name, recompute):
    attend = getattr(sparse_attention, name)

    def attend_all(q, k, v, heads, mode):
        return attend(q, k, v, heads, mode, recompute=recompute and name == "blocksparse_attention_impl")

    blocks = [sparse_attention.recomputable(block(attend_all, weights())) for _ in range(BLOCKS)]

    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = x
            for run in blocks:
                y = run(y, recompute=recompute and name == "attention_impl")
            loss = tf.reduce_sum(y**2)  # its gradient is data: a constant one would measure nothing
        return tape.gradient(loss, x)

    return tf.function(step, autograph=False)


def main(name):
    x = tf.random.stateless_normal((1, TIME, WIDTH), (3, 4))
    steps = [step_of(name, recompute).get_concrete_function(x) for recompute in (True, False)]
    held = peak()
    for step in steps:
        step(x)
        print((peak() - held) / 2**20)


main(sys.argv[1])
