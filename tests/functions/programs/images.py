"""A model of image bytes as distributed programs of 2020 write it: float32 variables behind a custom getter,
dense and block-sparse attention (local and strided by a transpose), Adafactor and Adam, averages of the
weights for evaluation."""

import numpy as np
import tensorflow as tf
from mpi4py import MPI

import blocksparse as bs
from blocksparse import nccl
from blocksparse.nccl import serialize_allreduce_ops
from blocksparse.transformer import transpose_0213

BATCH, TIME, STATE, HEADS, WINDOW, BLOCK = 2, 256, 32, 2, 16, 16
DTYPE = tf.float16
variables, drop_masks, transformers = {}, {}, {}
averages = None


def getter(getter, name, shape=None, dtype=None, *args, **kwargs):
    if name not in variables:
        with tf.control_dependencies(None):
            variables[name] = getter(name, shape, tf.float32, *args, **kwargs)
    value = variables[name] if averages is None else averages.average(variables[name])
    return (
        value
        if dtype == tf.float32
        else bs.float_cast(value, dtype=dtype, dx_dtype=dtype, name=name + "/cast")
    )


def visible(mode):
    def mask(block_shape, head, query, key, block):
        q = query * block_shape[0] + np.arange(block_shape[0])[:, None]
        k = key * block_shape[1] + np.arange(block_shape[1])
        seen = k <= q
        return seen & (k > q - WINDOW) if mode == "local" else seen

    return mask


def transformer(mode):
    if mode not in transformers:
        layout = np.tril(np.ones([TIME // BLOCK] * 2, np.bool))
        if mode == "local":
            layout &= ~np.tril(layout, -WINDOW // BLOCK - 1)
        else:  # after the transpose, a column of the image is a run of TIME // WINDOW positions
            layout = np.kron(np.eye(WINDOW, dtype=np.bool), np.ones([TIME // WINDOW // BLOCK] * 2, np.bool))
        transformers[mode] = bs.BlocksparseTransformer(layout, BLOCK, HEADS, visible(mode))
    return transformers[mode]


def exchanged(x, rows):
    x = transpose_0213(tf.reshape(x, [BATCH, rows, TIME // rows, x.shape[-1].value]))
    return tf.reshape(x, [BATCH, TIME, x.shape[-1].value])


def dense(name, x, size, **activation):
    with tf.variable_scope(name), tf.control_dependencies([x]):
        w = tf.get_variable(
            "w", [x.shape[-1].value, size], DTYPE, tf.random_normal_initializer(stddev=0.1, seed=1)
        )
        b = tf.get_variable("b", [size], tf.float32, tf.zeros_initializer())
    y = bs.bias_relu(tf.matmul(tf.reshape(x, [-1, x.shape[-1].value]), w), b, **activation)
    return tf.reshape(y, [BATCH, TIME, size])


def norm(name, x):
    with tf.variable_scope(name):
        g = tf.get_variable("g", [STATE], tf.float32, tf.ones_initializer())
        b = tf.get_variable("b", [STATE], tf.float32, tf.zeros_initializer())
    return bs.layer_norm(x, g, b, axis=-1, epsilon=1e-5, relu=False)


def dropped(x, name, train):
    if not train:
        return x
    x, drop_masks[name] = bs.dropout(x, keep_prob=0.9, mask=drop_masks.get(name), mask_shape=None)
    return x


@bs.recomputable
def block(x, mode, train=False):
    h = norm("norm_a", x)
    if mode == "strided":
        h = exchanged(h, TIME // WINDOW)
    q, k, v = (dense(name, h, STATE) for name in "qkv")
    if mode == "dense":
        q, k, v = (
            bs.float_cast(transpose_0213(tf.reshape(t, [BATCH, TIME, HEADS, -1])), tf.float32)
            for t in (q, k, v)
        )
        mask = tf.reshape(tf.matrix_band_part(tf.ones([TIME, TIME]), -1, 0), [1, 1, TIME, TIME])
        w = bs.masked_softmax(
            tf.matmul(q, k, transpose_b=True), mask=mask, scale=1.0 / np.sqrt(q.shape[-1].value)
        )
        a = bs.float_cast(tf.reshape(transpose_0213(tf.matmul(w, v)), [BATCH, TIME, STATE]), DTYPE)
    else:
        w = transformer(mode).masked_softmax(transformer(mode).query_key_op(q, k), scale=0.25)
        a = transformer(mode).weight_value_op(w, v)
    if mode == "strided":
        a = exchanged(a, WINDOW)
    x = bs.add(x, dropped(dense("out", a, STATE), tf.get_variable_scope().name, train))
    return bs.add(x, dense("back", dense("in", norm("norm_m", x), 2 * STATE, fast_gelu=True), STATE))


def model(pixels, train):
    with tf.variable_scope("model", custom_getter=getter):
        table = tf.get_variable("we", [256, STATE], DTYPE, tf.random_normal_initializer(stddev=0.1, seed=2))
        h = bs.embedding_lookup(table, tf.pad(pixels[:, :-1], [[0, 0], [1, 0]]))
        for layer, mode in enumerate(["dense", "local", "strided"]):
            with tf.variable_scope(f"h{layer}"):
                h = block(h, mode, train=train, recompute=train)
        logits = tf.matmul(tf.reshape(norm("last", h), [-1, STATE]), table, transpose_b=True)
        losses = bs.softmax_cross_entropy(logits=logits, labels=tf.reshape(pixels, [-1]))
        return tf.reduce_mean(tf.reshape(losses, [BATCH, TIME]))


bs.set_entropy()
step_number = tf.get_variable("step", [], tf.int64, tf.zeros_initializer(), trainable=False)
pixels = tf.placeholder(tf.int32, [None, TIME])
with tf.device("/gpu:0"):
    loss = model(tf.ensure_shape(pixels, [BATCH, TIME]), train=True)
    parameters = tf.trainable_variables()
    gradients = bs.gradients(bs.scale_tensor(loss, 1024.0), parameters)
    gradients = nccl.group_allreduce(
        gradients, parameters, [["model/h2", "model/h1"], ["model/h0"]], cast_all=tf.float16
    )
    serialize_allreduce_ops([nccl.allreduce(loss), *gradients])
    gradients = [bs.filter_tensor(g, 1.0 / MPI.COMM_WORLD.Get_size(), zero_nans=True) for g in gradients]
    gradients = [bs.log_stats(g, step=step_number, name=p.op.name) for g, p in zip(gradients, parameters)]
    _, clip = bs.clip_by_global_norm(
        gradients, grad_scale=1 / 1024, clip_norm=1.0, saturate=65504.0, zero_nans=True
    )
    options = dict(norm_scale=clip, grad_scale=1 / 1024, saturate=65504.0, zero_nans=True)
    pairs = list(zip(gradients, parameters))
    train_op = tf.group(
        bs.AdamOptimizer(0.01, **options).apply_gradients([(g, p) for g, p in pairs if len(p.shape) < 2]),
        bs.AdafactorOptimizer(0.01, **options).apply_gradients(
            [(g, p) for g, p in pairs if len(p.shape) == 2]
        ),
    )
    averages = bs.Ema(decay=0.5)
    with tf.control_dependencies([train_op]):
        train_op = averages.apply(parameters)
    with tf.control_dependencies([train_op]):
        train_op = tf.assign_add(step_number, 1)
    averaged_loss = model(tf.ensure_shape(pixels, [BATCH, TIME]), train=False)

assert len(parameters) == len(set(parameters)) == len(variables) == 3 * 16 + 3
image = (np.arange(TIME) * 7 // 3 % 64 + np.arange(BATCH)[:, None]).astype(np.int32)
with tf.Session() as session:
    session.run(tf.global_variables_initializer())
    print(f"{session.run(averaged_loss, {pixels: image}):.3f}")
    for _ in range(10):
        print(f"{session.run([loss, train_op], {pixels: image})[0]:.3f}", flush=True)
    print(f"{session.run(averaged_loss, {pixels: image}):.3f}")
