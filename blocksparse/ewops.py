"""Element-wise functions: computed in float32, rounded once, to the dtype of x.

Each takes OpenAI's arguments; `atomics`, `bench` and `use_tf` chose among CUDA kernels and change nothing
here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real

import numpy as np
import tensorflow as tf

from .tensors import TensorLike, as_float, as_float32, as_list, as_scale, check_axis, same_float32
from .utils import draw_seed


def add(x: TensorLike, y: TensorLike, name: str | None = None) -> tf.Tensor:
    """x + y, broadcasting; the dtype is that of the operand of higher rank (x on a tie)."""
    return _binary(tf.add, x, y, name or "Add")


def multiply(x: TensorLike, y: TensorLike, name: str | None = None) -> tf.Tensor:
    """x * y, broadcasting; the dtype is that of the operand of higher rank (x on a tie)."""
    return _binary(tf.multiply, x, y, name or "Mul")


def _binary(op: Callable, x: TensorLike, y: TensorLike, name: str) -> tf.Tensor:
    with tf.name_scope(name):
        x, y = tf.convert_to_tensor(x), tf.convert_to_tensor(y)
        _check_broadcast("x", x, "y", y)
        if x.dtype == y.dtype:
            return op(x, y)
        x, y = as_float("x", x), as_float("y", y)
        dtype = y.dtype if (y.shape.rank or 0) > (x.shape.rank or 0) else x.dtype
        return tf.cast(op(as_float32(x), as_float32(y)), dtype)


def _check_broadcast(name: str, x: tf.Tensor, other: str, y: tf.Tensor) -> tf.TensorShape:
    """The shape of the two together. Raises ValueError where there is none."""
    try:
        return tf.broadcast_static_shape(x.shape, y.shape)
    except ValueError:
        raise ValueError(
            f"{name} is {x.shape} and {other} is {y.shape}; sizes have to be equal or 1, from the last axis on"
        ) from None


def add_n(xs: Sequence[TensorLike], name: str | None = None) -> tf.Tensor:
    """The sum of tensors of one shape and dtype, added up in float32. xs: at least one."""
    xs = as_list(xs)
    if not xs:
        raise ValueError("xs is empty: add_n needs at least one tensor")
    if len(xs) == 1:
        return tf.convert_to_tensor(xs[0])
    with tf.name_scope(name or "AddN"):
        terms = [as_float(f"xs[{i}]", x) for i, x in enumerate(xs)]
        for i, term in enumerate(terms):
            if term.dtype != terms[0].dtype or not term.shape.is_compatible_with(terms[0].shape):
                came = f"{term.dtype.name} of shape {term.shape}"
                wanted = f"{terms[0].dtype.name} of shape {terms[0].shape}"
                raise ValueError(f"xs[{i}] is {came}, but xs[0] is {wanted}; all have to be alike")
        return same_float32(lambda *terms: tf.add_n(terms), *terms)


def relu(x: TensorLike, name: str | None = None) -> tf.Tensor:
    """max(x, 0)."""
    return tf.nn.relu(as_float("x", x), name=name or "Relu")


def gelu(x: TensorLike, alpha: float = 0.044715, name: str | None = None) -> tf.Tensor:
    """x / 2 * (1 + tanh(sqrt(2 / pi) * (x + alpha * x^3)))."""
    with tf.name_scope(name or "Gelu"):
        return same_float32(
            lambda x: 0.5 * x * (1 + tf.tanh(math.sqrt(2 / math.pi) * (x + alpha * x**3))),
            as_float("x", x),
        )


def swish(x: TensorLike, alpha: float = 1.0, name: str | None = None) -> tf.Tensor:
    """x * sigmoid(alpha * x)."""
    with tf.name_scope(name or "Swish"):
        return same_float32(lambda x: tf.nn.silu(x, alpha), as_float("x", x))


def fast_gelu(x: TensorLike, name: str | None = None) -> tf.Tensor:
    """x * sigmoid(1.702 * x): the Sparse Transformer's activation (paper, section 5.5)."""
    return swish(x, alpha=1.702, name=name or "FastGelu")


def bias_relu(
    x: TensorLike,
    b: TensorLike,
    axis: int = -1,
    relu: bool = False,
    fast_gelu: bool = False,
    atomics: bool = True,
    bench: int = 0,
    use_tf: bool = False,
) -> tf.Tensor:
    """f(x + b), f: nothing, relu or fast_gelu. b: [x.shape[axis]], or anything that broadcasts to x; x's
    dtype."""
    if relu and fast_gelu:
        raise ValueError("relu and fast_gelu are both set, but the activation is one of them: clear one")
    x, b = as_float("x", x), as_float("b", b)
    if b.shape.rank == 1 and axis != -1:
        axis = check_axis(axis, x)
        b = tf.reshape(b, [-1] + [1] * (x.shape.rank - 1 - axis))
    if not _check_broadcast("b", b, "x", x).is_compatible_with(x.shape):
        raise ValueError(f"b is {b.shape}, but x is {x.shape}; b has to broadcast to x, not x to b")
    activation = tf.nn.relu if relu else (lambda y: tf.nn.silu(y, 1.702)) if fast_gelu else tf.identity
    with tf.name_scope("BiasRelu"):
        return same_float32(lambda x, b: activation(x + b), x, b)


def float_cast(
    x: TensorLike, dtype: tf.DType, dx_dtype: tf.DType | None = None, name: str | None = None
) -> tf.Tensor:
    """x as dtype (float32, float16 or bfloat16); its gradient comes back as dx_dtype, x's own when that is
    None.

    `float_cast(w, tf.float16, dx_dtype=tf.float16)` gives a float32 parameter a float16 gradient, which the
    optimizers here, clip_by_global_norm and allreduce take as it is.
    """
    x, dtype = tf.convert_to_tensor(x), tf.as_dtype(dtype)
    dx_dtype = x.dtype if dx_dtype is None else tf.as_dtype(dx_dtype)
    for argument, value in (("dtype", dtype), ("dx_dtype", dx_dtype)):
        if value not in (tf.float32, tf.float16, tf.bfloat16):
            raise ValueError(
                f"{argument} is {value.name}, but is float32, float16 or bfloat16 here: use tf.cast"
            )
    if dtype == x.dtype:
        return x
    if dx_dtype == x.dtype:
        return tf.cast(x, dtype, name=name)

    @tf.custom_gradient
    def cast(x):
        return tf.cast(x, dtype, name=name), lambda dy: tf.cast(dy, dx_dtype)

    return cast(x)


def filter_values(
    x: tf.Tensor,
    scale: TensorLike,
    saturate: float,
    zero_infs: bool,
    zero_nans: bool,
    scale_first: bool = False,
) -> tf.Tensor:
    """x in float32: infinities and NaN zeroed if asked, then clipped to +-saturate (0: not) and scaled."""
    x = as_float32(x)
    if zero_infs:
        x = tf.where(tf.math.is_inf(x), tf.zeros_like(x), x)
    if zero_nans:
        x = tf.where(tf.math.is_nan(x), tf.zeros_like(x), x)
    if scale_first:
        x *= as_float32(scale)
    if saturate < 0:
        raise ValueError(f"saturate is {saturate}; it has to be the largest size that is kept, or 0 for any")
    if saturate:
        x = tf.clip_by_value(x, -saturate, saturate)
    return x if scale_first else x * as_float32(scale)


def filter_tensor(
    x: TensorLike,
    scale: TensorLike = 1.0,
    saturate: float = 0.0,
    zero_infs: bool = False,
    zero_nans: bool = False,
) -> tf.Tensor:
    """scale * x, with infinities or NaN zeroed if asked, clipped to +-saturate (65504: float16's largest; 0:
    not).

    The gradient goes through the same filter. scale: a number or a scalar tensor, which gets no gradient.
    """

    @tf.custom_gradient
    def filtered(x, scale):
        def pass_on(x):
            y = filter_values(x, scale, saturate, zero_infs, zero_nans, scale_first=True)
            return tf.cast(y, x.dtype)

        return pass_on(x), lambda dy: (pass_on(dy), None)

    return filtered(as_float("x", x), as_scale(scale))


def scale_tensor(x: TensorLike, scale: TensorLike = 1.0) -> tf.Tensor:
    """scale * x, rounded once, to x's dtype. scale: a number or a scalar tensor."""
    return same_float32(lambda x, scale: x * scale, as_float("x", x), as_scale(scale))


def dropout(
    x: TensorLike, keep_prob: TensorLike, mask: TensorLike = None, mask_shape: Sequence[int] | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    """(y, mask): y is x / keep_prob where an entry is kept, with probability keep_prob, and 0 elsewhere.

    mask: what an earlier call returned keeps the same entries again, given the same shape and keep_prob (it
    is the seed they are drawn from, int64 [2]: a mask costs 16 bytes); or OpenAI's packed bits, int32
    [ceil(entries / 32)], entry i being bit i % 32 of word i // 32. mask_shape: x's shape with 1 where one
    draw serves a whole axis. The seed comes from set_entropy(), else from TensorFlow. recomputable() keeps
    the same entries in both passes.
    """
    x = as_float("x", x)
    known = keep_prob if isinstance(keep_prob, (Real, np.ndarray)) else 1.0
    if not np.all((np.asarray(known) > 0) & (np.asarray(known) <= 1)):
        raise ValueError(f"keep_prob is {keep_prob}; it has to lie above 0 and be at most 1")
    if mask_shape:
        wanted = [None if m == 1 else m for m in mask_shape]
        if not x.shape.is_compatible_with(wanted):
            raise ValueError(
                f"mask_shape is {list(mask_shape)}, but x is {x.shape.as_list()}: each size must be x's or 1"
            )
        x = tf.ensure_shape(x, wanted)  # sizes that are known only when the graph runs
    shape = tf.shape(x) if not mask_shape else tf.constant(list(mask_shape))
    entries = math.prod(mask_shape) if mask_shape else x.shape.num_elements()
    mask = draw_seed() if mask is None else _checked_mask(mask, entries)
    with tf.name_scope("Dropout"):
        keep = _unpack(mask, shape) if mask.dtype == tf.int32 else _drawn(mask, shape, keep_prob)
        y = tf.where(keep, same_float32(tf.divide, x, as_float32(keep_prob)), tf.zeros_like(x))
    return y, mask


def _checked_mask(mask: TensorLike, entries: int | None) -> tf.Tensor:
    """A seed, or packed words of so many entries. Raises ValueError and TypeError for anything else."""
    mask = tf.convert_to_tensor(mask)
    if mask.dtype not in (tf.int32, tf.int64):
        raise TypeError(
            f"mask is {mask.dtype.name}; it is what dropout returned, int64, or packed bits, int32"
        )
    if mask.dtype == tf.int64:
        if not mask.shape.is_compatible_with([2]):
            raise ValueError(
                f"mask is int64 {mask.shape}; the seed that dropout returned is [2], packed bits int32"
            )
        return mask
    words = mask.shape.num_elements()
    if mask.shape.rank not in (1, None):
        raise ValueError(f"mask is int32 {mask.shape}; packed bits have one axis: give the words so")
    if None not in (entries, words) and 32 * words < entries:
        raise ValueError(
            f"mask is int32 {mask.shape}; {entries} entries want [{-(-entries // 32)}] words or more"
        )
    return mask


def _drawn(seed: tf.Tensor, shape: tf.Tensor, keep_prob: TensorLike) -> tf.Tensor:
    return tf.random.stateless_uniform(shape, seed, alg="philox") < as_float32(keep_prob)


def _unpack(words: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
    bits = tf.bitwise.right_shift(words[:, tf.newaxis], tf.range(32)) & 1
    return tf.reshape(tf.reshape(bits, [-1])[: tf.reduce_prod(shape)], shape) > 0
