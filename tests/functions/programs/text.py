"""A byte-level Transformer as programs for TensorFlow 1 and blocksparse write it: `text.py FLOAT16
RECOMPUTE`."""

import sys

import numpy as np
import tensorflow as tf
from mpi4py import MPI

import blocksparse as bs

BATCH, TIME, STATE, HEADS, LAYERS = 4, 64, 32, 2, 2
FLOAT16, RECOMPUTE = (int(argument) for argument in sys.argv[1:])
STEPS = 12

rank, ranks = MPI.COMM_WORLD.Get_rank(), MPI.COMM_WORLD.Get_size()
drop_masks = {}
transformers = {}


def causal(block_shape, head, query, key, block):
    return np.tril(np.ones(block_shape, np.bool)) if query == key else np.ones(block_shape, np.bool)


def transformer(block_size=16):
    if block_size not in transformers:
        layout = np.tril(np.ones([TIME // block_size] * 2, np.bool))
        transformers[block_size] = bs.BlocksparseTransformer(layout, block_size, HEADS, causal)
    return transformers[block_size]


def variable(name, shape, stddev=0.05):
    start = tf.random_normal_initializer(stddev=stddev, seed=len(tf.global_variables()))
    value = tf.get_variable(
        name, shape, initializer=start if len(shape) > 1 else tf.constant_initializer(stddev)
    )
    if FLOAT16 and len(shape) > 1:
        value = bs.float_cast(value, dtype=tf.float16, dx_dtype=tf.float16)
    return value


def norm(x, name):
    with tf.variable_scope(name):
        size = x.shape[-1].value
        return bs.layer_norm(x, variable("g", [size], 1.0), variable("b", [size], 0.0), axis=-1, epsilon=1e-5)


def dense(x, name, size, fast_gelu=False):
    with tf.variable_scope(name):
        with tf.control_dependencies([x.op]):
            w = variable("w", [x.shape[-1].value, size])
        y = tf.matmul(tf.reshape(x, [-1, x.shape[-1].value]), w)
        y = bs.bias_relu(y, variable("b", [size], 0.0), fast_gelu=fast_gelu, atomics=False)
        return tf.reshape(y, tf.concat([tf.shape(x)[:-1], [size]], axis=0))


def dropped(x, name):
    x, drop_masks[name] = bs.dropout(x, keep_prob=0.95, mask=drop_masks.get(name))
    return x


@bs.recomputable
def block(x, name, train):
    with tf.variable_scope(name):
        h = norm(x, "before_attention")
        w = transformer().query_key_op(dense(h, "q", STATE), dense(h, "k", STATE))
        w = transformer().masked_softmax(w, scale=1.0 / np.sqrt(STATE / HEADS))
        a = dense(transformer().weight_value_op(w, dense(h, "v", STATE)), "out", STATE)
        x = bs.add(x, dropped(a, name + "a") if train else a)
        m = dense(dense(norm(x, "before_dense"), "in", 4 * STATE, fast_gelu=True), "back", STATE)
        return bs.add(x, dropped(m, name + "m") if train else m)


def model(inputs, labels, train):
    with tf.variable_scope("model", reuse=not train):
        table = variable("x", [256, STATE])
        h = bs.embedding_lookup(table, inputs) + variable("position", [1, TIME, STATE])
        for layer in range(LAYERS):
            h = block(h, f"layer_{layer}", train, recompute=train and bool(RECOMPUTE))
        logits = tf.matmul(tf.reshape(h, [-1, STATE]), table, transpose_b=True)
        return tf.reduce_mean(bs.softmax_cross_entropy(logits=logits, labels=labels))


with tf.device("/gpu:0"):
    inputs, labels = (tf.placeholder(tf.uint8, [BATCH, TIME]) for _ in range(2))
    scale = tf.placeholder(tf.float32, [])
    np.random.seed(rank)
    bs.set_entropy()
    loss = model(inputs, labels, train=True)
    parameters = tf.trainable_variables()
    gradients = bs.gradients(bs.scale_tensor(loss, scale), parameters)
    if ranks > 1:
        gradients = bs.group_allreduce(gradients, parameters, search_strings=["layer_1", "layer_0", "x"])
    length, clip = bs.clip_by_global_norm(gradients, grad_scale=tf.reciprocal(scale), clip_norm=1.0)
    adam = bs.AdamOptimizer(0.01, norm_scale=clip, grad_scale=tf.reciprocal(scale), fp16=FLOAT16)
    step = adam.apply_gradients(zip(gradients, parameters))
    without_dropout = model(inputs, labels, train=False)
transformers = drop_masks = None
bs.clear_bst_constants()

assert [g.dtype for g in gradients[:2]] == [tf.float16 if FLOAT16 else tf.float32] * 2
data = np.fromstring("the quick brown fox jumps over the lazy dog. " * 60, dtype=np.uint8)
config = tf.ConfigProto(allow_soft_placement=True)
with tf.Session(config=config) as session:
    session.run(tf.global_variables_initializer())
    size, losses = 2.0**20 if FLOAT16 else 1.0, []
    while len(losses) < STEPS:
        starts = np.random.randint(0, len(data) - TIME, BATCH)
        x, y = (np.stack([data[i + shift :][:TIME] for i in starts]) for shift in (0, 1))
        now, factor, _ = session.run([loss, clip, step], {inputs: x, labels: y, scale: size})
        if factor == 0:
            size /= 2
        else:
            losses.append(now)
            print(f"{now:.3f}", flush=True)
    print(f"{session.run(without_dropout, {inputs: x, labels: y}):.3f}")
