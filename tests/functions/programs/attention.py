"""Three-step attention under a Defun that recomputes it, beside dense attention, with gradients."""

import numpy as np
import tensorflow as tf
from tensorflow.python.framework.function import Defun

from blocksparse import BlocksparseTransformer

BATCH, TIME, HEADS, WIDTH, BLOCK, CHUNK = 2, 256, 2, 64, 16, 64


def visible():
    """Per head: its own chunk of 64, and one summary block of every chunk."""
    block = np.arange(TIME // BLOCK)
    chunk = block // (CHUNK // BLOCK)
    summaries = [block % 4 == 3 - head for head in range(HEADS)]
    return np.array([(chunk[:, None] == chunk) | columns for columns in summaries]) & (
        block[:, None] >= block
    )


def causal(block_shape, head, query, key, block):
    mask = np.ones(block_shape, dtype=np.bool)
    if query == key:
        for q, k in np.ndindex(block_shape):
            if k > q:
                mask[q, k] = 0
    return mask


def split(x):
    return tf.transpose(tf.reshape(x, [BATCH, TIME, HEADS, WIDTH // HEADS]), [0, 2, 1, 3])


def sparse_attention(q, k, v):
    bst = BlocksparseTransformer(visible(), block_size=BLOCK, mask_callback=causal, heads=HEADS)
    w = bst.masked_softmax(bst.query_key_op(q, k), scale=tf.cast(1 / np.sqrt(WIDTH / HEADS), tf.float32))
    return bst.weight_value_op(w, v)


def dense_attention(q, k, v):
    mask = np.kron(visible(), np.ones([BLOCK, BLOCK])) * np.tril(np.ones([TIME, TIME]))
    w = tf.matmul(split(q), split(k), transpose_b=True) / np.sqrt(WIDTH / HEADS)
    w = tf.nn.softmax(w * tf.to_float(mask) - 1e9 * tf.to_float(1 - mask))
    return tf.reshape(tf.transpose(tf.matmul(w, split(v)), [0, 2, 1, 3]), [BATCH, TIME, WIDTH])


@Defun(func_name="backward", noinline=False)
def backward(q, k, v, dy):
    for x in (q, k, v):
        x.set_shape([BATCH, TIME, WIDTH])
    with tf.device("/gpu:0"), tf.control_dependencies([dy]):
        y = sparse_attention(q, k, v)
    return tf.gradients(y, [q, k, v], grad_ys=[dy])


@Defun(func_name="forward", noinline=False, grad_func=backward, shape_func=lambda op: [op.inputs[0].shape])
def recomputed_attention(q, k, v):
    for x in (q, k, v):
        x.set_shape([BATCH, TIME, WIDTH])
    with tf.device("/gpu:0"):
        return sparse_attention(q, k, v)


q, k, v, dy = (tf.constant(np.random.RandomState(i).randn(BATCH, TIME, WIDTH), tf.float32) for i in range(4))
fetches = []
for attention in (
    dense_attention,
    sparse_attention,
    lambda *a: recomputed_attention(*map(tf.cast, a, [tf.float32] * 3)),
):
    y = attention(q, k, v)
    fetches.append([y, *tf.gradients(y, [q, k, v], grad_ys=[dy])])
with tf.Session() as session:
    dense, *others = session.run(fetches)
for other in others:
    print(*("%.1e" % (np.abs(a - b).max() / np.abs(a).max()) for a, b in zip(dense, other)))
