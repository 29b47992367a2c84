"""Sparse Transformer attention, for every pattern of the paper: dense and block-sparse.

`python attention.py [fp16|bf16]` compares the two (see compare.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt

# As a command this is the first to import TensorFlow, whose log lines would stand above the table.
if __name__ == "__main__":
    if __package__:
        from .silence import quiet
    else:
        from silence import quiet
    with quiet():
        import tensorflow  # noqa: F401

import tensorflow as tf

from blocksparse import BlocksparseTransformer
from blocksparse.plan import patterns
from blocksparse.plan.callback import MaskCallback
from blocksparse.plan.checks import (
    check_block_size,
    check_heads,
    check_key_width,
    check_kv_heads,
    check_positive,
)
from blocksparse.plan.modes import Mode, Sizes, as_modes, block_modes, check_causal, check_stride, head_modes
from blocksparse.tensors import TensorLike, do_not_convert
from blocksparse.transformer.passes import passes, passes_up_to
from blocksparse.transformer.predicate import assemble
from blocksparse.transformer.segments import Segments, equal_segments, segment_numbers

if __package__:
    from .recompute import recomputable
    from .utils import merge_heads, shape_list, split_heads
    from .utils import merge_states as merge_states
    from .utils import split_states as split_states
else:
    from recompute import recomputable
    from utils import merge_heads, shape_list, split_heads
    from utils import merge_states as merge_states
    from utils import split_states as split_states

MAX_TIME = 8192  # how long a context may be where that is not known when a graph is traced
DTYPES = (tf.float16, tf.bfloat16, tf.float32)


@do_not_convert
def attention_impl(
    q: TensorLike,
    k: TensorLike,
    v: TensorLike,
    heads: int,
    attn_mode: str | Sequence[str],
    local_attn_ctx: int | None = None,
    blocksize: int = 32,
    num_verts: int | None = None,
    vertsize: int | None = None,
    recompute: bool = False,
    causal: bool = True,
    kv_heads: int | None = None,
    segment_ids: TensorLike | tuple[TensorLike, TensorLike] | None = None,
    lengths: TensorLike | None = None,
    max_time: int = MAX_TIME,
) -> tf.Tensor:
    """softmax(q k^T / sqrt(head_dim)) v over the keys a pattern shows, by dense matrices.

    Arguments, result and errors are those of `blocksparse_attention_impl`, but blocksize may be any number and
    max_time means nothing. Memory grows with time squared; with recompute=True none of it is kept for the backward
    pass.
    """
    q, k, v, kv_heads = _check_tensors(q, k, v, heads, kv_heads)
    modes = head_modes(attn_mode, heads, local_attn_ctx, blocksize, num_verts, vertsize, causal)
    segments = segment_numbers(segment_ids, lengths, q, k)
    return _dense(q, k, v, segments, heads=heads, kv_heads=kv_heads, modes=modes, recompute=recompute)


@do_not_convert
def blocksparse_attention_impl(
    q: TensorLike,
    k: TensorLike,
    v: TensorLike,
    heads: int,
    attn_mode: str | Sequence[str],
    local_attn_ctx: int | None = None,
    blocksize: int = 32,
    num_verts: int | None = None,
    vertsize: int | None = None,
    recompute: bool = False,
    causal: bool = True,
    kv_heads: int | None = None,
    segment_ids: TensorLike | tuple[TensorLike, TensorLike] | None = None,
    lengths: TensorLike | None = None,
    max_time: int = MAX_TIME,
) -> tf.Tensor:
    """softmax(q k^T / sqrt(head_dim)) v over the keys a pattern shows, by blocks that hold any.

    | attn_mode | query i sees key j (j <= i where causal) when |
    | --- | --- |
    | `all` | always |
    | `local` | abs(i - j) < local_attn_ctx: causal, so many keys, its own included |
    | `strided` | (i - j) % local_attn_ctx == 0 |
    | `chunk` | i // local_attn_ctx == j // local_attn_ctx |
    | `previous` | j is in the chunk before i's, or where not causal in the one after it |
    | `summary` | j is in a chunk's summary columns |
    | `fixed` | `chunk+summary` |
    | `prefix` | j < local_attn_ctx, or j <= i: the first positions see each other, the others all before them |
    | `"local+strided"` | any of the joined modes shows it (the paper's merged heads) |
    | `("local", "strided")` | one mode a head, cycled over heads (the paper's multi-head combination) |

    Args:
        q, k, v: [batch, time, heads * head_dim], all float16, bfloat16 or float32. The width of v may differ.
            `time` may be any number; not known when a graph is traced, any up to max_time.
        heads: number of heads; divides the widths.
        local_attn_ctx: window, stride, chunk or prefix length; fastest where chunks are multiples of blocksize, and
            a stride divides time / blocksize.
        blocksize: 8, 16, 32, 64 or 128. It changes the speed, and through vertsize the summary columns.
        num_verts, vertsize: head h has the (h % num_verts)-th group of vertsize blocks, counted from a
            chunk's end, as its summary columns.
        recompute: as in `attention_impl`; here nothing of the scores' size is kept in either case.
        causal: False lets queries look ahead as they look back, for encoders.
        max_time: the longest time of a graph that is traced without knowing it; a longer one ends it with
            InvalidArgumentError.

        kv_heads: heads of k and v, a divisor of heads, which they are by default; k and v are then
            [batch, time, kv_heads * head_dim], and query head h reads key head h // (heads / kv_heads)
            (grouped-query attention; multi-query where 1).
        segment_ids: int32 [batch, time]: a query sees a key only where both have one number, for packed documents. A
            negative number is padding, which sees nothing and is seen by nothing; what q, k and v hold there has to be
            finite, since 0 times NaN is NaN.
        lengths: [batch], integers: positions from there on are padding.

    Returns: [batch, time, heads * value_dim] in q's dtype, value_dim being a head of v's width. Softmax and sums run
        in float32. A query that sees no key gives zeros, with zero gradients.
    Raises: ValueError, TypeError for arguments that do not fit; LookupError when differentiated twice.

    Paper: sections 4.2, 4.3 and 5.1 of Child, Gray, Radford and Sutskever, arXiv 1904.10509.
    """
    q, k, v, kv_heads = _check_tensors(q, k, v, heads, kv_heads)
    time = q.shape.as_list()[1]
    first, order, joined = blocksparse_passes(
        time, heads, attn_mode, local_attn_ctx, blocksize, num_verts, vertsize, causal, max_time
    )
    # Every kernel keeps q, k, v, the result and its row sums, no more: recompute=True has nothing to forget.
    scale = 1 / sqrt(shape_list(q)[2] // heads)
    sharing = dict(kv_heads=kv_heads, segment_ids=segment_ids, lengths=lengths)
    return first.attention(q, k, v, scale, order, joined=joined, any_time=True, **sharing)


def blocksparse_passes(
    n_ctx: int | None,
    heads: int,
    attn_mode: str | Sequence[str],
    local_attn_ctx: int | None = None,
    blocksize: int = 32,
    num_verts: int | None = None,
    vertsize: int | None = None,
    causal: bool = True,
    max_time: int = MAX_TIME,
) -> tuple[BlocksparseTransformer, list[int], list]:
    """(bst, order, joined) with which bst.attention and bst.attention_grad compute `blocksparse_attention_impl`.

    Both take them with any_time=True. n_ctx: None where it is not known.
    """
    modes = head_modes(attn_mode, heads, local_attn_ctx, blocksize, num_verts, vertsize, causal)
    check_block_size("blocksize", blocksize)
    if n_ctx is None:
        check_positive("max_time", max_time)
        (first, order), *joined = passes_up_to(max_time, heads, modes, blocksize)
    else:
        (first, order), *joined = passes(n_ctx or 1, heads, modes, blocksize)  # no plan has no rows
    return first, order, joined


@do_not_convert
def get_attn_mask(
    n: TensorLike,
    attn_mode: str | Sequence[str],
    local_attn_ctx: int | None = None,
    blocksize: int = 32,
    num_verts: int | None = None,
    vertsize: int | None = None,
    causal: bool = True,
) -> tf.Tensor:
    """float32 [1, m, n, n], 1 where a query (row) sees a key; head h has mask h % m."""
    i, j = tf.range(n)[:, None], tf.range(n)
    modes = head_modes(attn_mode, None, local_attn_ctx, blocksize, num_verts, vertsize, causal)
    return tf.cast(tf.stack([mode.pattern().sees(i, j) for mode in modes])[None], tf.float32)


@do_not_convert
def strided_transpose(x: tf.Tensor, n_ctx: int, local_attn_ctx: int, blocksize: int) -> tf.Tensor:
    """[batch, time, width] with time in the order (i % local_attn_ctx, i // local_attn_ctx).

    There `strided` is block-diagonal: n_ctx / local_attn_ctx has to be a multiple of blocksize.
    """
    for name, size in dict(n_ctx=n_ctx, local_attn_ctx=local_attn_ctx, blocksize=blocksize).items():
        check_positive(name, size)
    check_stride(n_ctx, local_attn_ctx, blocksize)
    batch, time, width = shape_list(x)
    if isinstance(time, int) and time != n_ctx:
        raise ValueError(f"x has {time} positions, but n_ctx={n_ctx}: give n_ctx={time}")
    x = tf.reshape(x, [batch, n_ctx // local_attn_ctx, local_attn_ctx, width])
    return tf.reshape(tf.transpose(x, [0, 2, 1, 3]), [batch, time, width])


@do_not_convert
def get_blocksparse_obj(
    n_ctx: int,
    n_heads: int,
    attn_mode: str | Sequence[str],
    blocksize: int = 32,
    local_attn_ctx: int | None = None,
    num_verts: int = 4,
    vertsize: int = 1,
    causal: bool = True,
) -> BlocksparseTransformer:
    """The BlocksparseTransformer of a pattern, in natural order; `strided` alone in `strided_transpose`'s."""
    sizes = Sizes(n_ctx, n_heads, attn_mode, blocksize, local_attn_ctx, num_verts, vertsize, causal)
    modes = block_modes(sizes)
    if len(modes) == 1:
        return assemble([modes[0].one_pass(n_ctx)], n_ctx, n_ctx, n_heads, blocksize)
    return assemble([mode.pattern() for mode in modes], n_ctx, n_ctx, n_heads, blocksize)


def get_callback(
    attn_mode: str | Sequence[str],
    local_attn_ctx: int | None = None,
    blocksize: int = 32,
    num_verts: int | None = None,
    vertsize: int | None = None,
    causal: bool = True,
) -> Callable:
    """The mask_callback(blk_shape, head_idx, qry_idx, key_idx, blk_idx) of a pattern: bool of blk_shape.

    `strided` (in `strided_transpose`'s order) and, without num_verts, `fixed` are made of whole blocks, to
    which the callback adds causality, if any. blocksize is the unit of vertsize. `.batch` takes index arrays.
    """
    whole_blocks = {"strided"} if num_verts else {"strided", "fixed"}
    if whole_blocks.issuperset(as_modes(attn_mode)):
        check_causal(causal)
        return MaskCallback([patterns.causal if causal else patterns.everything])
    modes = head_modes(attn_mode, None, local_attn_ctx, blocksize, num_verts, vertsize, causal)
    return MaskCallback([mode.pattern() for mode in modes])


@recomputable
def _dense(
    q, k, v, segments: Segments | tuple[()], *, heads: int, kv_heads: int, modes: tuple[Mode, ...]
) -> tf.Tensor:
    dtype, (batch, n_ctx, _) = v.dtype, shape_list(q)
    i, j = tf.range(n_ctx)[:, None], tf.range(n_ctx)
    masks = [mode.pattern().sees(i, j) for mode in modes]
    mask = masks[0] if len(masks) == 1 else tf.stack([masks[head % len(masks)] for head in range(heads)])
    mask = mask & equal_segments(segments) if segments else mask
    q, k, v = (tf.cast(split_heads(x, n), tf.float32) for x, n in ((q, heads), (k, kv_heads), (v, kv_heads)))

    def product(x, keys, **transposed):
        """x keys: the rows of all heads that read a key head below each other, so that no key is repeated."""
        if heads == kv_heads:
            return tf.matmul(x, keys, **transposed)
        below = tf.reshape(x, [batch, kv_heads, heads // kv_heads * n_ctx, shape_list(x)[-1]])
        found = tf.matmul(below, keys, **transposed)
        return tf.reshape(found, [batch, heads, n_ctx, shape_list(found)[-1]])

    scores = product(q, k, transpose_b=True) / sqrt(shape_list(q)[-1])
    weights = tf.nn.softmax(tf.where(mask, scores, tf.float32.min))
    # A row that sees nothing weighs all keys alike: its result goes. Weights masked once more would be kept as well.
    attended = tf.where(tf.reduce_any(mask, axis=-1, keepdims=True), product(weights, v), 0.0)
    return tf.cast(merge_heads(attended), dtype)


def _check_tensors(q, k, v, heads, kv_heads) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, int]:
    named = {name: _as_tensor(name, x) for name, x in (("q", q), ("k", k), ("v", v))}
    check_positive("heads", heads)
    kv_heads = check_kv_heads(kv_heads, heads)
    for name, x in named.items():
        if x.dtype not in DTYPES:
            raise TypeError(
                f"{name} has dtype {x.dtype.name}; cast it to float16, bfloat16 or float32 (nearest: float32)"
            )
        if x.dtype != named["q"].dtype:
            raise TypeError(
                f"{name} has dtype {x.dtype.name} and q {named['q'].dtype.name}; cast them to one dtype"
            )
        if x.shape.rank != 3:
            raise ValueError(f"{name} has shape {x.shape}; it has to be [batch, time, heads * head_dim]")
        width = x.shape.as_list()[-1]
        if width is None:
            raise ValueError(
                f"{name} has shape {x.shape}; its last axis has to be known (tf.ensure_shape sets it)"
            )
        number = heads if name == "q" else kv_heads
        check_heads(number, f"the width of {name}", width, "heads" if number == heads else "kv_heads")
    q, k, v = named.values()
    for name, x in (("k", k), ("v", v)):
        if not q.shape[:2].is_compatible_with(x.shape[:2]):
            raise ValueError(
                f"{name} has shape {x.shape} and q {q.shape}; batch and time have to be equal (blocksparse.from_mask "
                "takes keys of another time than the queries)"
            )
    check_key_width(heads, kv_heads, q.shape.as_list()[2], k.shape.as_list()[2])
    return q, k, v, kv_heads


def _as_tensor(name: str, x) -> tf.Tensor:
    try:
        return tf.convert_to_tensor(x)
    except (TypeError, ValueError) as error:
        wanted = "a tensor or array [batch, time, heads * head_dim]"
        raise TypeError(f"{name} is a {type(x).__name__}; it has to be {wanted}") from error


if __name__ == "__main__":
    if __package__:
        from .compare import main
    else:
        from compare import main
    raise SystemExit(main(attention_impl, blocksparse_attention_impl))
