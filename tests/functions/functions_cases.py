"""Every function of one result: what it is in float64 NumPy, and inputs to try it on."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

import blocksparse as bs

random = np.random.RandomState(0)
X = random.uniform(-2, 2, (3, 4, 8))
Y = random.uniform(-2, 2, (3, 4, 8))
ROW = random.uniform(0.5, 1.5, 8)
COLUMN = random.uniform(0.5, 1.5, 4)
TABLE = random.uniform(-1, 1, (6, 8))
IDS = np.array([[1, 5, 1], [0, 3, 1]], np.uint8)
LABELS = random.randint(0, 8, (2, 6)).astype(np.uint8)
MASK = np.tril(random.uniform(0.5, 3, (1, 4, 8)), 2)
HIDING = MASK * np.array([1, 0, 1, 1])[:, np.newaxis]  # row 1 sees nothing


@dataclass(frozen=True)
class Case:
    name: str
    function: Callable
    oracle: Callable
    inputs: tuple  # the differentiable ones

    def __str__(self):
        return self.name


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


def cross_entropy(logits):
    rows = logits - logits.max(-1, keepdims=True)
    logs = rows - np.log(np.exp(rows).sum(-1, keepdims=True))
    return -np.take_along_axis(logs, LABELS.reshape(logits.shape[:-1])[..., np.newaxis], -1)[..., 0]


CASES = [
    Case("add", bs.add, np.add, (X, Y)),
    Case("add row", bs.add, np.add, (X, ROW)),
    Case("add to row", bs.add, np.add, (ROW, X)),
    Case("multiply", bs.multiply, np.multiply, (X, ROW)),
    Case("add_n", lambda *xs: bs.add_n(xs), lambda *xs: sum(xs), (X,) * 11),
    Case("add_n of one", lambda x: bs.add_n([x]), lambda x: x, (X,)),
    Case("relu", bs.relu, lambda x: np.maximum(x, 0), (X,)),
    Case("gelu", bs.gelu, gelu, (X,)),
    Case("swish", lambda x: bs.swish(x, alpha=1.3), lambda x: x * sigmoid(1.3 * x), (X,)),
    Case("fast_gelu", bs.fast_gelu, lambda x: x * sigmoid(1.702 * x), (X,)),
    Case("bias_relu", bs.bias_relu, np.add, (X, ROW)),
    Case(
        "bias_relu relu",
        lambda x, b: bs.bias_relu(x, b, relu=True),
        lambda x, b: np.maximum(x + b, 0),
        (X, ROW),
    ),
    Case(
        "bias_relu fast_gelu",
        lambda x, b: bs.bias_relu(x, b, fast_gelu=True, atomics=False),
        lambda x, b: (x + b) * sigmoid(1.702 * (x + b)),
        (X, ROW),
    ),
    Case(
        "bias_relu axis 1", lambda x, b: bs.bias_relu(x, b, axis=1), lambda x, b: x + b[:, None], (X, COLUMN)
    ),
    Case("scale_tensor", lambda x: bs.scale_tensor(x, 0.3), lambda x: 0.3 * x, (X,)),
    Case("filter_tensor", lambda x: bs.filter_tensor(x, 3.0, zero_nans=True), lambda x: 3 * x, (X,)),
    Case("embedding_lookup", lambda emb: bs.embedding_lookup(emb, IDS), lambda emb: emb[IDS], (TABLE,)),
    Case("layer_norm", lambda *a: bs.layer_norm(*a, axis=-1), layer_norm, (X, ROW, ROW[::-1])),
    Case(
        "layer_norm axis 1",
        lambda *a: bs.layer_norm(*a, epsilon=1e-5),
        lambda *a: layer_norm(*a, axis=1, epsilon=1e-5),
        (X, COLUMN, COLUMN[::-1]),
    ),
    Case(
        "layer_norm in segments",
        lambda *a: bs.layer_norm(*a, axis=-1, segments=2),
        lambda *a: layer_norm(*a, segments=2),
        (X, ROW, ROW[::-1]),
    ),
    Case(
        "layer_norm relu",
        lambda *a: bs.layer_norm(*a, axis=2, relu=True),
        lambda *a: np.maximum(layer_norm(*a), 0),
        (X, ROW, ROW[::-1] - 1),
    ),
    Case("softmax", lambda x: bs.softmax(x, scale=0.7), lambda x: softmax(x, scale=0.7), (X,)),
    Case("masked_softmax", lambda x: bs.masked_softmax(x, MASK, 0.7), lambda x: softmax(x, MASK, 0.7), (X,)),
    Case(
        "masked_softmax, empty row",
        lambda x: bs.masked_softmax(x, HIDING),
        lambda x: softmax(x, HIDING),
        (X,),
    ),
    Case("masked_softmax, no mask", bs.masked_softmax, softmax, (X,)),
    Case(
        "masked_top_k_softmax",
        lambda x: bs.masked_top_k_softmax(x, 3, HIDING, 0.7),
        lambda x: softmax(x, HIDING, 0.7, k=3),
        (X,),
    ),
    Case(
        "masked_top_k_softmax, no mask",
        lambda x: bs.masked_top_k_softmax(x, 2),
        lambda x: softmax(x, k=2),
        (X,),
    ),
    Case("top_k", lambda x: bs.top_k(x, 3)[0], lambda x: -np.sort(-x)[..., :3], (X,)),
    Case("rectified_top_k", lambda x: bs.rectified_top_k(x, 5), lambda x: rectified(x, 5, True), (X,)),
    Case(
        "rectified_top_k, no rebase",
        lambda x: bs.rectified_top_k(x, 5, rebase=False),
        lambda x: rectified(x, 5, False),
        (X,),
    ),
    Case("softmax_cross_entropy", lambda x: bs.softmax_cross_entropy(x, LABELS), cross_entropy, (X,)),
    Case("transpose_2d", bs.transpose_2d, np.transpose, (TABLE,)),
    Case(
        "transpose_0213",
        bs.transpose_0213,
        lambda x: x.transpose(0, 2, 1, 3),
        (random.uniform(-1, 1, (2, 3, 4, 5)),),
    ),
    Case("allreduce", bs.allreduce, lambda x: x, (X,)),
]


def moved(case, step=1e-6):
    """A direction for the inputs, weights for the results, and the derivative of their weighted sum along
    it."""
    CHOICES.clear()
    case.oracle(*case.inputs)
    generator = np.random.RandomState(1)
    directions = [generator.uniform(-1, 1, x.shape) for x in case.inputs]
    ahead, behind = (
        case.oracle(*(x + sign * step * u for x, u in zip(case.inputs, directions))) for sign in (1, -1)
    )
    weights = generator.uniform(-1, 1, np.shape(ahead))
    return directions, weights, np.sum(weights * (ahead - behind)) / (2 * step)
