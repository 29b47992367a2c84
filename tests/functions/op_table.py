"""One row for each function: a call, its float64 truth, a plain TensorFlow computation; and what it refuses."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import oracle
import tensorflow as tf
from layouts import causal

import blocksparse as bs
from blocksparse import nccl
from sparse_attention import attention_impl, blocksparse_attention_impl

random = np.random.RandomState(0)
X = random.uniform(-2, 2, (3, 4, 8))
Y = random.uniform(-2, 2, (3, 4, 8))
ROW = random.uniform(0.5, 1.5, 8)
COLUMN = random.uniform(0.5, 1.5, 4)
TABLE = random.uniform(-1, 1, (6, 8))
IDS = np.array([[1, 5, 1], [0, 3, 1]], np.uint8)
LABELS = random.randint(0, 8, (3, 4)).astype(np.uint8)
MASK = np.round(np.tril(random.uniform(0.5, 3, (1, 4, 8)), 2) * 16) / 16  # held exactly by every dtype
HIDING = MASK * np.array([1, 0, 1, 1])[:, np.newaxis]  # row 1 sees nothing
BITS = random.randint(-(2**31), 2**31, 3).astype(np.int32)  # one for each of X's 96 entries
FOUR = random.uniform(-1, 1, (2, 3, 4, 5))
Q, K, V = random.uniform(-2, 2, (3, 2, 16, 12))
SCORES = random.uniform(-2, 2, (2, 2, 3, 8, 8))
HEADS, SIZE = 2, 8
LAYOUT = np.tri(2, dtype=bool)
PAIRS = np.argwhere(LAYOUT)
SEEN = oracle.dense_mask(LAYOUT, SIZE, causal, HEADS)
WHOLE = oracle.dense_mask(LAYOUT, SIZE, None, HEADS)
AWAY = np.subtract.outer(np.arange(16), np.arange(16))
MODES = np.stack([(AWAY >= 0) & (AWAY < 2), (AWAY >= 0) & (AWAY % 2 == 0)])  # local and strided, 2


@dataclass(frozen=True)
class Row:
    name: str  # begins with the function's
    function: Callable  # of inputs, then fixed
    truth: Callable  # the same in NumPy
    plain: Callable  # the same in TensorFlow, in the dtype of the inputs
    inputs: tuple  # the differentiable ones
    fixed: tuple = ()  # the others
    result: str = ""  # dtype of the result; "": that of the inputs
    batched: tuple = (0,)  # which arguments share the leading axis, that may be 0

    def __str__(self):
        return self.name

    @property
    def of(self):
        return re.match(r"[\w.]+", self.name)[0]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gelu(x):
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def layer_norm(x, g, b, axis=-1, segments=1, epsilon=1e-6):
    parts = []
    for part, g_part, b_part in zip(*(np.split(t, segments, a) for t, a in ((x, axis), (g, 0), (b, 0)))):
        column = (-1, *[1] * (x.ndim - 1 - axis % x.ndim))
        unit = (part - part.mean(axis, keepdims=True)) / np.sqrt(part.var(axis, keepdims=True) + epsilon)
        parts.append(unit * g_part.reshape(column) + b_part.reshape(column))
    return np.concatenate(parts, axis)


def softmax(x, mask=None, scale=1.0, k=None):
    scores, seen = (x * scale, np.ones(x.shape, bool)) if mask is None else (x * mask * scale, mask * x != 0)
    if k is not None:
        kept = np.argsort(-np.where(seen, scores, -np.inf), axis=-1, kind="stable")[..., :k]
        seen = (
            seen & np.isin(np.arange(x.shape[-1]), kept) if x.ndim == 1 else seen & one_hot(kept, x.shape[-1])
        )
    weights = np.where(seen, np.exp(scores - scores.max(-1, keepdims=True)), 0)
    return weights / np.maximum(weights.sum(-1, keepdims=True), 1e-300)


def one_hot(indices, size):
    return (indices[..., np.newaxis] == np.arange(size)).any(-2)


def rectified(x, k, rebase):
    kth = -np.sort(-x, axis=-1)[..., k - 1 : k]
    base = np.maximum(kth, 0) if rebase else np.zeros(1)
    base, kept = CHOICES.setdefault((k, rebase), (base, (x >= kth) & (x > base)))
    return np.where(kept, x - base, 0)


CHOICES: dict = {}  # base and choice get no gradient: they stay when x is moved


def cross_entropy(logits, labels):
    rows = logits - logits.max(-1, keepdims=True)
    logs = rows - np.log(np.exp(rows).sum(-1, keepdims=True))
    return -np.take_along_axis(logs, labels.reshape(logits.shape[:-1])[..., np.newaxis], -1)[..., 0]


def to_blocks(xp, x):
    """[batch, heads, 16, 16] -> the layout's blocks."""
    cut = [x[:, :, SIZE * i : SIZE * (i + 1), SIZE * j : SIZE * (j + 1)] for i, j in PAIRS]
    return xp.stack(cut, 2)


def from_blocks(xp, w):
    """The inverse of to_blocks, 0 elsewhere."""
    first, second, third = (w[:, :, i] for i in range(3))
    rows = [[first, xp.zeros_like(first)], [second, third]]
    return xp.concat([xp.concat(row, -1) for row in rows], -2)


class numpy:  # NumPy by TensorFlow's names
    stack, zeros_like, concat = np.stack, np.zeros_like, np.concatenate


def split(xp, x):
    x = np.reshape(x, (-1, 16, HEADS, 6)) if xp is numpy else tf.reshape(x, [-1, 16, HEADS, 6])
    return np.transpose(x, (0, 2, 1, 3)) if xp is numpy else tf.transpose(x, [0, 2, 1, 3])


def join(xp, x):
    if xp is numpy:
        return np.transpose(x, (0, 2, 1, 3)).reshape(-1, 16, HEADS * 6)
    return tf.reshape(tf.transpose(x, [0, 2, 1, 3]), [-1, 16, HEADS * 6])


def turned(xp, x):
    return np.swapaxes(x, 2, 3) if xp is numpy else tf.linalg.matrix_transpose(x)


def nt(xp):
    return lambda a, b: to_blocks(xp, split(xp, a) @ turned(xp, split(xp, b)))


def nn(xp):
    return lambda w, b: join(xp, from_blocks(xp, w) @ split(xp, b))


def tn(xp):
    return lambda w, b: join(xp, turned(xp, from_blocks(xp, w)) @ split(xp, b))


def block_softmax(visible):
    return lambda x: to_blocks(numpy, softmax(from_blocks(numpy, x) + 9 * visible, 1.0 * visible[None], 0.7))


def plain_visible(scores, visible):
    """Softmax among the visible, 0 elsewhere."""
    weights = tf.nn.softmax(tf.where(visible, scores, scores.dtype.min))
    return tf.where(visible, weights, tf.zeros_like(weights))


def plain_softmax(x, mask=None, scale=1.0, k=None):
    visible = (
        tf.ones_like(x, tf.bool) if mask is None else tf.broadcast_to(tf.constant(mask != 0), tf.shape(x))
    )
    scores = x * scale if mask is None else x * tf.cast(mask, x.dtype) * scale
    if k is not None:
        shown = tf.where(visible, scores, scores.dtype.min)
        visible &= shown >= tf.math.top_k(shown, k).values[..., -1:]
    return plain_visible(scores, visible)


def plain_block_softmax(visible):
    return lambda x: to_blocks(tf, plain_visible(from_blocks(tf, x) * 0.7, tf.constant(visible)))


def plain_attention(visible, scale=6**-0.5):
    def attend(q, k, v):
        q, k, v = (split(tf, x) for x in (q, k, v))
        return join(tf, plain_visible(q @ turned(tf, k) * scale, tf.constant(visible)) @ v)

    return attend


def true_attention(visible):
    return lambda q, k, v: oracle.attention(q, k, v, visible, 6**-0.5)[0]


def plain_gelu(x):
    return x / 2 * (1 + tf.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def plain_norm(x, g, b, axis=-1, segments=1, epsilon=1e-6):
    parts, column = [], [-1, *[1] * (x.shape.rank - 1 - axis % x.shape.rank)]
    for part, g_part, b_part in zip(
        tf.split(x, segments, axis), tf.split(g, segments), tf.split(b, segments)
    ):
        mean = tf.reduce_mean(part, axis, keepdims=True)
        variance = tf.reduce_mean((part - mean) ** 2, axis, keepdims=True)
        unit = (part - mean) / tf.sqrt(variance + epsilon)
        parts.append(unit * tf.reshape(g_part, column) + tf.reshape(b_part, column))
    return tf.concat(parts, axis)


def plain_rectified(x, k, rebase):
    kth = tf.math.top_k(x, k).values[..., -1:]
    base = tf.stop_gradient(tf.nn.relu(kth)) if rebase else tf.zeros([], x.dtype)
    return tf.where(x >= kth, tf.nn.relu(x - base), tf.zeros_like(x))


def plain_cross_entropy(x, labels):
    return -tf.gather(tf.nn.log_softmax(x), tf.cast(labels, tf.int32), batch_dims=2)


def plain_lookup(table, ids):
    return tf.gather(table, tf.cast(ids, tf.int32))


def norm(*xs):
    return np.sqrt(sum((x**2).sum() for x in xs))


def plain_clip(x, y):
    norm = tf.sqrt(tf.reduce_sum(x * x) + tf.reduce_sum(y * y))
    return 2 / tf.maximum(norm, 2)


def dropped(x, words):
    kept = (words.view(np.uint32)[:, np.newaxis] >> np.arange(32, dtype=np.uint32) & 1).reshape(-1)
    return np.where(kept[: x.size].reshape(x.shape), x / 0.75, 0)


def plain_dropped(x, words):
    kept = tf.bitwise.right_shift(words[:, tf.newaxis], tf.range(32)) & 1
    return x / 0.75 * tf.cast(tf.reshape(tf.reshape(kept, [-1])[: tf.size(x)], tf.shape(x)), x.dtype)


def same(x):
    return x


def bst():
    return bs.BlocksparseTransformer(LAYOUT, SIZE, HEADS, causal)


BST = "BlocksparseTransformer."
MASKED = bst()
BOTH = {"batched": (0, 1)}
ROWS = [
    Row("add", bs.add, np.add, tf.add, (X, Y), **BOTH),
    Row("add row", bs.add, np.add, tf.add, (X, ROW)),
    Row("add to row", bs.add, np.add, tf.add, (ROW, X), batched=(1,)),
    Row("add, one axis", bs.add, np.add, tf.add, (ROW, ROW[:1])),
    Row("multiply", bs.multiply, np.multiply, tf.multiply, (X, ROW)),
    Row("multiply, 1 wide", bs.multiply, np.multiply, tf.multiply, (X, Y[:, :1]), **BOTH),
    Row(
        "add_n",
        lambda *xs: bs.add_n(xs),
        lambda *xs: sum(xs),
        lambda *xs: sum(xs),
        (X,) * 11,
        batched=range(11),
    ),
    Row("add_n of one", lambda x: bs.add_n([x]), same, tf.identity, (X,)),
    Row("relu", bs.relu, lambda x: np.maximum(x, 0), tf.nn.relu, (X,)),
    Row("gelu", bs.gelu, gelu, plain_gelu, (X,)),
    Row("gelu, four axes", bs.gelu, gelu, plain_gelu, (FOUR,)),
    Row(
        "swish",
        lambda x: bs.swish(x, alpha=1.3),
        lambda x: x * sigmoid(1.3 * x),
        lambda x: x * tf.sigmoid(1.3 * x),
        (X,),
    ),
    Row(
        "fast_gelu",
        bs.fast_gelu,
        lambda x: x * sigmoid(1.702 * x),
        lambda x: x * tf.sigmoid(1.702 * x),
        (X,),
    ),
    Row("bias_relu", bs.bias_relu, np.add, tf.add, (X, ROW)),
    Row(
        "bias_relu relu",
        lambda x, b: bs.bias_relu(x, b, relu=True),
        lambda x, b: np.maximum(x + b, 0),
        lambda x, b: tf.nn.relu(x + b),
        (X, ROW),
    ),
    Row(
        "bias_relu fast_gelu",
        lambda x, b: bs.bias_relu(x, b, fast_gelu=True, atomics=False),
        lambda x, b: (x + b) * sigmoid(1.702 * (x + b)),
        lambda x, b: (x + b) * tf.sigmoid(1.702 * (x + b)),
        (X, ROW),
    ),
    Row(
        "bias_relu axis 1",
        lambda x, b: bs.bias_relu(x, b, axis=1),
        lambda x, b: x + b[:, None],
        lambda x, b: x + b[:, None],
        (X, COLUMN),
    ),
    Row("float_cast", lambda x: bs.float_cast(x, tf.float32), same, tf.identity, (X,), result="float32"),
    Row("scale_tensor", lambda x: bs.scale_tensor(x, 0.3), lambda x: 0.3 * x, lambda x: x * 0.3, (X,)),
    Row(
        "filter_tensor",
        lambda x: bs.filter_tensor(x, 3.0, zero_nans=True),
        lambda x: 3 * x,
        lambda x: 3 * x,
        (X,),
    ),
    Row("dropout", lambda x, m: bs.dropout(x, 0.75, mask=m)[0], dropped, plain_dropped, (X,), (BITS,)),
    Row(
        "embedding_lookup",
        bs.embedding_lookup,
        lambda t, i: t[i],
        plain_lookup,
        (TABLE,),
        (IDS,),
        batched=(1,),
    ),
    Row("layer_norm", lambda *a: bs.layer_norm(*a, axis=-1), layer_norm, plain_norm, (X, ROW, ROW[::-1])),
    Row(
        "layer_norm axis 1",
        lambda *a: bs.layer_norm(*a, epsilon=1e-5),
        lambda *a: layer_norm(*a, axis=1, epsilon=1e-5),
        lambda *a: plain_norm(*a, axis=1, epsilon=1e-5),
        (X, COLUMN, COLUMN[::-1]),
    ),
    Row(
        "layer_norm in segments",
        lambda *a: bs.layer_norm(*a, axis=-1, segments=2),
        lambda *a: layer_norm(*a, segments=2),
        lambda *a: plain_norm(*a, segments=2),
        (X, ROW, ROW[::-1]),
    ),
    Row(
        "layer_norm relu",
        lambda *a: bs.layer_norm(*a, axis=2, relu=True),
        lambda *a: np.maximum(layer_norm(*a), 0),
        lambda *a: tf.nn.relu(plain_norm(*a)),
        (X, ROW, ROW[::-1] - 1),
    ),
    Row(
        "softmax",
        lambda x: bs.softmax(x, scale=0.7),
        lambda x: softmax(x, scale=0.7),
        lambda x: plain_softmax(x, scale=0.7),
        (X,),
    ),
    Row(
        "masked_softmax",
        lambda x, m: bs.masked_softmax(x, m, 0.7),
        lambda x, m: softmax(x, m, 0.7),
        lambda x, m: plain_softmax(x, m, 0.7),
        (X,),
        (MASK,),
    ),
    Row("masked_softmax, empty row", bs.masked_softmax, softmax, plain_softmax, (X,), (HIDING,)),
    Row("masked_softmax, no mask", bs.masked_softmax, softmax, plain_softmax, (X,)),
    Row("masked_softmax, one axis", bs.masked_softmax, softmax, plain_softmax, (ROW,), batched=()),
    Row(
        "masked_top_k_softmax",
        lambda x, m: bs.masked_top_k_softmax(x, 3, m, 0.7),
        lambda x, m: softmax(x, m, 0.7, k=3),
        lambda x, m: plain_softmax(x, m, 0.7, k=3),
        (X,),
        (HIDING,),
    ),
    Row(
        "masked_top_k_softmax, no mask",
        lambda x: bs.masked_top_k_softmax(x, 2),
        lambda x: softmax(x, k=2),
        lambda x: plain_softmax(x, k=2),
        (X,),
    ),
    Row(
        "top_k",
        lambda x: bs.top_k(x, 3)[0],
        lambda x: -np.sort(-x)[..., :3],
        lambda x: tf.sort(x, direction="DESCENDING")[..., :3],
        (X,),
    ),
    Row(
        "rectified_top_k",
        lambda x: bs.rectified_top_k(x, 5),
        lambda x: rectified(x, 5, True),
        lambda x: plain_rectified(x, 5, True),
        (X,),
    ),
    Row(
        "rectified_top_k, no rebase",
        lambda x: bs.rectified_top_k(x, 5, rebase=False),
        lambda x: rectified(x, 5, False),
        lambda x: plain_rectified(x, 5, False),
        (X,),
    ),
    Row(
        "softmax_cross_entropy",
        bs.softmax_cross_entropy,
        cross_entropy,
        plain_cross_entropy,
        (X,),
        (LABELS,),
        result="float32",
        **BOTH,
    ),
    Row("transpose_2d", bs.transpose_2d, np.transpose, tf.transpose, (TABLE,)),
    Row(
        "transpose_0213",
        bs.transpose_0213,
        lambda x: x.transpose(0, 2, 1, 3),
        lambda x: tf.transpose(x, [0, 2, 1, 3]),
        (FOUR,),
    ),
    Row("log_stats", lambda x: bs.log_stats(x, 1), same, tf.identity, (X,)),
    Row(
        "global_norm",
        lambda *xs: bs.global_norm(xs),
        norm,
        lambda x, y: tf.sqrt(tf.reduce_sum(x * x) + tf.reduce_sum(y * y)),
        (X, ROW),
        result="float32",
    ),
    Row(
        "clip_by_global_norm",
        lambda *xs: bs.clip_by_global_norm(xs, 2.0)[1],
        lambda *xs: 2 / np.maximum(norm(*xs), 2),
        plain_clip,
        (X, ROW),
        result="float32",
    ),
    Row("allreduce", nccl.allreduce, same, tf.identity, (X,)),
    Row(BST + "query_key_op", bst().query_key_op, nt(numpy), nt(tf), (Q, K), result="float32", **BOTH),
    Row(BST + "nt_op", bst().nt_op, nt(numpy), nt(tf), (Q, K), result="float32", **BOTH),
    Row(BST + "weight_value_op", bst().weight_value_op, nn(numpy), nn(tf), (SCORES, V), **BOTH),
    Row(BST + "nn_op", bst().nn_op, nn(numpy), nn(tf), (SCORES, V), **BOTH),
    Row(BST + "tn_op", bst().tn_op, tn(numpy), tn(tf), (SCORES, V), **BOTH),
    Row(
        BST + "masked_softmax",
        lambda x: MASKED.masked_softmax(x, 0.7),
        block_softmax(SEEN),
        plain_block_softmax(SEEN),
        (SCORES,),
    ),
    Row(
        BST + "softmax",
        lambda x: MASKED.softmax(x, 0.7),
        block_softmax(WHOLE),
        plain_block_softmax(WHOLE),
        (SCORES,),
    ),
    Row(
        BST + "attention",
        bst().attention,
        true_attention(SEEN),
        plain_attention(SEEN),
        (Q, K, V),
        batched=(0, 1, 2),
    ),
    *(
        Row(
            function.__name__,
            lambda q, k, v, function=function: function(q, k, v, HEADS, ("local", "strided"), 2, SIZE),
            true_attention(MODES),
            plain_attention(MODES),
            (Q, K, V),
            batched=(0, 1, 2),
        )
        for function in (attention_impl, blocksparse_attention_impl)
    ),
]

F, INTS, CUBE = (lambda *shape: tf.ones(shape)), tf.constant([[1, 2], [3, 4]]), tf.ones([2, 2, 2])
SPARSE = tf.SparseTensor([[0, 1]], [1.0], [2, 2])
NO_FLOAT = "is int32; cast it to float32, float16 or bfloat16"


def attend(function, *tensors, heads=HEADS):
    return lambda: function(*tensors, heads, "local", 2, SIZE)


REFUSED = [
    ("add", lambda: bs.add(F(2, 3), F(4)), ValueError, r"x is \(2, 3\) and y is \(4,\); sizes have to be"),
    ("add", lambda: bs.add(INTS, F(2)), TypeError, f"x {NO_FLOAT}"),
    ("multiply", lambda: bs.multiply(F(2, 3), F(2)), ValueError, r"x is \(2, 3\) and y is \(2,\)"),
    ("multiply", lambda: bs.multiply(F(2), INTS), TypeError, f"y {NO_FLOAT}"),
    ("add_n", lambda: bs.add_n([F(2), F(3)]), ValueError, r"xs\[1\] is float32 of shape \(3,\), but xs\[0\]"),
    ("add_n", lambda: bs.add_n([F(2, 2), INTS]), TypeError, rf"xs\[1\] {NO_FLOAT}"),
    ("add_n", lambda: bs.add_n([]), ValueError, "xs is empty"),
    *((f.__name__, lambda f=f: f(INTS), TypeError, f"x {NO_FLOAT}") for f in (bs.relu, bs.gelu, bs.swish)),
    *((f.__name__, lambda f=f: f(INTS), TypeError, f"x {NO_FLOAT}") for f in (bs.fast_gelu, bs.softmax)),
    *(
        (f.__name__, lambda f=f: f(INTS), TypeError, f"x {NO_FLOAT}")
        for f in (bs.scale_tensor, bs.filter_tensor)
    ),
    *((f.__name__, lambda f=f: f(F()), ValueError, "x is a scalar") for f in (bs.softmax, bs.masked_softmax)),
    *(
        (
            f.__name__,
            lambda f=f: f(F(2, 2), 3),
            ValueError,
            r"k is 3, but rows of x \(\(2, 2\)\) have 2 entries",
        )
        for f in (bs.top_k, bs.rectified_top_k, bs.masked_top_k_softmax)
    ),
    ("bias_relu", lambda: bs.bias_relu(INTS, F(2)), TypeError, f"x {NO_FLOAT}"),
    ("bias_relu", lambda: bs.bias_relu(F(2, 2), F(2), axis=2), ValueError, r"axis is 2, but x is \(2, 2\)"),
    ("bias_relu", lambda: bs.bias_relu(F(2, 2), CUBE), ValueError, r"b is \(2, 2, 2\), but x is \(2, 2\)"),
    ("float_cast", lambda: bs.float_cast(F(2), tf.int32), ValueError, "dtype is int32, but is float32"),
    ("dropout", lambda: bs.dropout(INTS, 0.5), TypeError, f"x {NO_FLOAT}"),
    ("dropout", lambda: bs.dropout(F(2), 1.5), ValueError, "keep_prob is 1.5; it has to lie above 0"),
    ("embedding_lookup", lambda: bs.embedding_lookup(F(2, 2), F(2)), TypeError, "idx is float32; cast it"),
    ("embedding_lookup", lambda: bs.embedding_lookup(F(2), INTS), ValueError, r"emb is \(2,\); it has to be"),
    ("layer_norm", lambda: bs.layer_norm(INTS, F(2), F(2)), TypeError, f"x {NO_FLOAT}"),
    ("layer_norm", lambda: bs.layer_norm(F(2), F(2), F(2)), ValueError, r"axis is 1, but x is \(2,\)"),
    ("layer_norm", lambda: bs.layer_norm(F(2, 2), F(3), F(2)), ValueError, r"g is \(3,\), but x is \(2, 2\)"),
    ("masked_softmax", lambda: bs.masked_softmax(F(2, 2), F(2)), ValueError, r"mask is \(2,\), but x is"),
    (
        "masked_softmax",
        lambda: bs.masked_softmax(F(2, 2), "no"),
        TypeError,
        "mask is string; it has to hold real",
    ),
    (
        "masked_softmax",
        lambda: bs.masked_softmax(None),
        TypeError,
        "x is of type NoneType; give a dense tensor",
    ),
    (
        "masked_softmax",
        lambda: bs.masked_softmax(SPARSE),
        TypeError,
        "x is of type SparseTensor; give a dense",
    ),
    *(
        (f.__name__, lambda f=f, scale=scale: f(F(2, 2), scale=scale), error, words)
        for f in (bs.softmax, bs.masked_softmax, bs.scale_tensor, bs.filter_tensor)
        for scale, error, words in (
            ("2", TypeError, "scale is string; it has to hold real numbers"),
            (F(2), ValueError, r"scale is \(2,\); it has to be a number or a scalar tensor"),
        )
    ),
    ("top_k", lambda: bs.top_k(F(2, 2), 1.5), TypeError, "k is 1.5; it has to be an int"),
    ("top_k", lambda: bs.top_k(F(), 1), ValueError, "x is a scalar"),
    (
        "softmax_cross_entropy",
        lambda: bs.softmax_cross_entropy(F(2, 3), F(2)),
        TypeError,
        "labels is float32",
    ),
    (
        "softmax_cross_entropy",
        lambda: bs.softmax_cross_entropy(F(2, 3), INTS),
        ValueError,
        r"labels is \(2, 2\), but logits is \(2, 3\): 2 labels are wanted",
    ),
    ("transpose_2d", lambda: bs.transpose_2d(CUBE), ValueError, r"x is \(2, 2, 2\); it has to be a matrix"),
    ("transpose_0213", lambda: bs.transpose_0213(CUBE), ValueError, r"x is .*; it has to be of four axes"),
    ("log_stats", lambda: bs.log_stats(F(2), 1, freq=3), ValueError, "freq is 3, but it is a power of 2"),
    ("log_stats", lambda: bs.log_stats(INTS, 1), TypeError, f"x {NO_FLOAT}"),
    ("global_norm", lambda: bs.global_norm([F(2), None]), ValueError, r"grads has no tensor at \[1\]"),
    ("clip_by_global_norm", lambda: bs.clip_by_global_norm([INTS]), TypeError, rf"grads\[0\] {NO_FLOAT}"),
    *(
        (BST + name, lambda name=name: getattr(bst(), name)(INTS, F(2)), TypeError, "a is int32")
        for name in ("query_key_op", "nt_op", "weight_value_op", "nn_op", "tn_op")
    ),
    *(
        (BST + name, lambda name=name: getattr(bst(), name)(F(2), F(2)), ValueError, r"a has shape \(2,\)")
        for name in ("query_key_op", "nt_op", "weight_value_op", "nn_op", "tn_op")
    ),
    *(
        (BST + n, lambda n=n: getattr(bst(), n)(INTS), TypeError, "x is int32")
        for n in ("softmax", "masked_softmax")
    ),
    *(
        (BST + n, lambda n=n: getattr(bst(), n)(F(2)), ValueError, "x has shape")
        for n in ("softmax", "masked_softmax")
    ),
    (
        BST + "attention",
        lambda: bst().attention(F(1, 9, 4), F(1, 16, 4), F(1, 16, 4)),
        ValueError,
        "q has shape",
    ),
    (BST + "attention", lambda: bst().attention(INTS, INTS, INTS), TypeError, "q is int32"),
    *(
        (function.__name__, attend(function, *tensors, heads=heads), error, words)
        for function in (attention_impl, blocksparse_attention_impl)
        for tensors, heads, error, words in (
            ((INTS, INTS, INTS), 2, TypeError, "q has dtype int32"),
            ((F(1, 16, 4), F(1, 8, 4), F(1, 16, 4)), 2, ValueError, "k has shape .* batch and time"),
            ((F(1, 16, 4),) * 3, 3, ValueError, "heads=3 does not divide the width of q"),
        )
    ),
]

# What the modules offer besides, and why it has no row.
NO_ROW = {
    "AdafactorOptimizer": "changes variables: test_functions_optimize.py",
    "AdamOptimizer": "changes variables: test_functions_optimize.py",
    "Ema": "changes variables: test_functions_optimize.py",
    "filter_values": "what filter_tensor and the optimizers share, not exported",
    "BlocksparseTransformer": "its methods have rows",
    "BlocksparseTransformer.among": "attention of unknown time takes plans by length: test_attention_lengths.py",
    "BlocksparseTransformer.attention_grad": "attention's own gradient, to the bit: test_engine_attention_grad.py",
    "BlocksparseTransformer.block_coord": "a pair of numbers out of a table: test_engine_transformer.py",
    "clear_bst_constants": "does nothing",
    "from_mask": "makes an object: test_engine_from_mask.py",
}


def moved(row, step=1e-6):
    """A direction for the inputs, weights for the results, and the derivative of their weighted sum along
    it."""
    CHOICES.clear()
    row.truth(*row.inputs, *row.fixed)
    generator = np.random.RandomState(1)
    directions = [generator.uniform(-1, 1, x.shape) for x in row.inputs]
    ahead, behind = (
        row.truth(*(x + sign * step * u for x, u in zip(row.inputs, directions)), *row.fixed)
        for sign in (1, -1)
    )
    weights = weights_for(ahead, generator)
    return directions, weights, np.sum(weights * (ahead - behind)) / (2 * step)


def weights_for(y, generator):
    """Numbers in -1 .. 1 that every dtype here holds exactly."""
    return np.round(generator.uniform(-1, 1, np.shape(y)) * 64) / 64


def gradients(row, inputs, weights, step=1e-6):
    """Of sum(weights * truth), by central differences entry by entry."""
    found = []
    for number, x in enumerate(inputs):
        slopes = np.zeros(x.size)
        for entry in range(x.size):
            sides = []
            for sign in (1, -1):
                near = x.copy()
                near.reshape(-1)[entry] += sign * step
                sides.append(row.truth(*inputs[:number], near, *inputs[number + 1 :], *row.fixed))
            slopes[entry] = np.sum(weights * (sides[0] - sides[1])) / (2 * step)
        found.append(slopes.reshape(x.shape))
    return found
