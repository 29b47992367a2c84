"""BlocksparseTransformer: OpenAI's interface to block-sparse attention, on today's TensorFlow."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import tensorflow as tf

from ..fused.lengths import Lengths
from ..fused.op import Attention, Layout, attend, attend_gradient
from ..plan import build_blocks
from ..plan.checks import check_heads, check_key_width, check_kv_heads
from ..plan.plan import check_residues
from ..tensors import TensorLike, as_bool, do_not_convert
from . import oracles
from .lookup import LookupTables
from .operands import check_equal, described, float_tensor, key_number, scaled
from .segments import segment_numbers
from .steps import BlockProducts


class BlocksparseTransformer(LookupTables):
    """Attention and its three steps over the active blocks of a layout.

    layout: bool [query_blocks, key_blocks] for all heads (then `heads` is needed), or [heads, query_blocks,
        key_blocks]; or a scipy.sparse matrix, or a sequence of them, one a head.
    block_size: 8, 16, 32, 64 or 128; query i is in block row i // block_size.
    mask_callback(blk_shape, head_idx, qry_idx, key_idx, blk_idx): bool [block_size, block_size] for each
        active block, True where the query (row) may see the key (column); layout.build_blocks says how it can
        be made cheap.
    Raises ValueError or TypeError that name the argument, what came and what is wanted.

    Block-sparse matrices are [batch, heads, blocks, block_size, block_size], blocks sorted by (query, key).
    Heads may have different numbers of blocks in `attention`; the separate steps and their tables need equal ones.
    """

    @do_not_convert
    def __init__(
        self,
        layout: Any,
        block_size: int = 64,
        heads: int | None = None,
        mask_callback: Callable | None = None,
        name: str | None = None,
    ):
        self.active = build_blocks(layout, block_size, mask_callback, heads)
        self.has_mask = mask_callback is not None
        self.name = name
        self.heads = len(self.active.head_index)
        self.lut_heads = self.active.lut_heads
        self.blk_size = block_size
        self.blk_shape = (block_size, block_size)
        self.ctx_blks_q = self.active.query_blocks
        self.ctx_blks_k = self.active.key_blocks
        self.softmax_dtype: tf.DType | None = None  # what softmax returns: q's dtype in the last query_key_op
        self._attention: Layout = Attention(self.active)

    nt_test = oracles.nt_test
    nn_test = oracles.nn_test
    tn_test = oracles.tn_test
    masked_softmax_test = oracles.masked_softmax_test
    masked_softmax_grad_test = oracles.masked_softmax_grad_test

    @do_not_convert
    def attention(
        self,
        q: TensorLike,
        k: TensorLike,
        v: TensorLike,
        scale: TensorLike | None = None,
        order: int | Sequence[int] = 1,
        with_lse: bool = False,
        joined: Sequence[tuple[BlocksparseTransformer, int | Sequence[int]]] = (),
        kv_heads: int | None = None,
        segment_ids: TensorLike | tuple[TensorLike, TensorLike] | None = None,
        lengths: TensorLike | None = None,
        any_time: bool = False,
    ) -> tf.Tensor | tuple[tf.Tensor, tf.Tensor]:
        """softmax(scale q k^T) v over the visible keys, in one step that keeps no scores.

        q: [batch, query_time, heads * head_dim]; k: [batch, key_time, kv_heads * head_dim];
        v: [batch, key_time, kv_heads * value_dim]; all float16, bfloat16 or float32. Softmax and sums run in
        float32.
        scale: 1 / sqrt(head_dim) by default; a number, or a scalar tensor or variable, which gets its gradient (it then
            multiplies q, rounded once to q's dtype).
        order: s, one number or one a head: row r of the layout is time step (r % (n / s)) * s + r // (n / s),
            so that s = stride makes the rows of one residue class neighbours without moving any tensor.
        with_lse: also return the log of each row's sum of exp(scale q k^T).
        joined: further objects with their orders, of the same heads and times: the result is the softmax over all of
            their keys, as if one layout had shown them. No two may show a query the same key, which is not checked.
        kv_heads: heads of k and v, a divisor of heads, which they are by default: query head h reads key head
            h // (heads / kv_heads) (grouped-query attention; multi-query where 1).
        segment_ids: int32 [batch, time], or a tuple of the queries' and the keys': a query sees a key only where both
            have one number, whatever the layout shows. A negative number is padding, which sees and is seen by nothing.
        lengths: int32 [batch]: positions from there on are padding.
        any_time: q, k and v may have fewer rows than the layout, also a number not known yet. What the layout says of
            rows past their end goes for nothing: on a GPU, without segments, it has to show no query such a key.
        Returns out [batch, query_time, heads * value_dim] in q's dtype, or (out, lse) with lse float32
        [batch, heads, query_time]; both can be differentiated, once. A query that sees no key has out 0, lse
        -inf and no gradient. (Where plain TensorFlow runs, tf.debugging.enable_check_numerics stops at that -inf, with
        with_lse=True alone.) A NaN or infinity in k reaches only the queries that see it; one in q, v or a gradient, at
        most the tile of rows and columns that holds it.
        """
        kv_heads = check_kv_heads(kv_heads, self.heads)
        q, k, v = self._operands(q, k, v, kv_heads, any_time)
        scale = 1 / math.sqrt(q.shape.as_list()[2] // self.heads) if scale is None else scale
        q, scale = scaled(q, scale)
        passes = [bst._as_pass(own, self) for bst, own in [(self, order), *joined]]
        segments = segment_numbers(segment_ids, lengths, q, k)
        return attend(tf.cast(q, k.dtype), k, v, passes, scale, with_lse, kv_heads, segments)

    @do_not_convert
    def attention_grad(
        self,
        q: TensorLike,
        k: TensorLike,
        v: TensorLike,
        out: TensorLike,
        lse: TensorLike,
        dout: TensorLike,
        scale: float | None = None,
        order: int | Sequence[int] = 1,
        joined: Sequence[tuple[BlocksparseTransformer, int | Sequence[int]]] = (),
        kv_heads: int | None = None,
        segment_ids: TensorLike | tuple[TensorLike, TensorLike] | None = None,
        lengths: TensorLike | None = None,
        any_time: bool = False,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """(dq, dk, dv) of `attention`, from the (out, lse) it returned: for gradients written by hand.

        dv = p^T dout, dq = scale ds k, dk = scale ds^T q; p = exp(scale q k^T - lse) over the visible keys,
        ds = p * (dout v^T - rowsum(dout * out)).
        q, k, v, order, joined, kv_heads, segment_ids, lengths, any_time: as `attention` was given them; scale a number.
        out, lse: what it returned with_lse=True; dout: out's gradient, of its shape and dtype. Cannot be
        differentiated again.
        """
        kv_heads = check_kv_heads(kv_heads, self.heads)
        q, k, v = self._operands(q, k, v, kv_heads, any_time)
        if scale is not None and (isinstance(scale, bool) or not isinstance(scale, (int, float, np.number))):
            raise TypeError(f"scale is {scale!r}; it has to be a number here: multiply q by a tensor instead")
        scale = 1 / math.sqrt(q.shape.as_list()[2] // self.heads) if scale is None else float(scale)
        out, dout = (
            self._operand(name, x, self.ctx_blks_q, None, any_time)
            for name, x in (("out", out), ("dout", dout))
        )
        check_equal("width", 2, out=out, dout=dout, **(dict(v=v) if kv_heads == self.heads else {}))
        if (wanted := v.shape.as_list()[2] // kv_heads * self.heads) != out.shape.as_list()[2]:
            raise ValueError(
                f"out has width {out.shape.as_list()[2]}; of this v and kv_heads attention makes {wanted}"
            )
        check_equal("batch", 0, q=q, out=out, dout=dout)
        lse = tf.convert_to_tensor(lse)
        wanted = (self.heads, q.shape.as_list()[1])
        if lse.dtype != tf.float32 or lse.shape.rank != 3 or not lse.shape[1:].is_compatible_with(wanted):
            raise ValueError(
                f"lse is {lse.dtype.name} {lse.shape}; give attention's own, float32 "
                f"[batch, {wanted[0]} heads, {wanted[1]} queries] (with_lse=True)"
            )
        for name, x in (("out", out), ("dout", dout)):
            if x.dtype != q.dtype:
                raise TypeError(f"{name} is {x.dtype.name} and q {q.dtype.name}; cast them to one dtype")
        passes = [bst._as_pass(own, self) for bst, own in [(self, order), *joined]]
        segments = segment_numbers(segment_ids, lengths, q, k)
        return tuple(attend_gradient(q, k, v, out, lse, dout, passes, scale, kv_heads, segments))

    @do_not_convert
    def query_key_op(
        self, q: TensorLike, k: TensorLike, name: str | None = None, bench: int = 0
    ) -> tf.Tensor:
        """nt_op, after which softmax returns q's dtype."""
        self.softmax_dtype = tf.convert_to_tensor(q).dtype.base_dtype
        return self.nt_op(q, k, name)

    @do_not_convert
    def weight_value_op(
        self, w: TensorLike, v: TensorLike, name: str | None = None, bench: int = 0
    ) -> tf.Tensor:
        """nn_op."""
        return self.nn_op(w, v, name)

    @do_not_convert
    def nt_op(self, a: TensorLike, b: TensorLike, name: str | None = None, bench: int = 0) -> tf.Tensor:
        """a_q b_k^T for each block, float32; a is [batch, query_time, heads * d], b over key_time.

        `bench` is taken in these operations for the sake of programs that give it.
        """
        with tf.name_scope(name or "nt_op"):
            a, b = self._operand("a", a, self.ctx_blks_q), self._operand("b", b, self.ctx_blks_k)
            check_equal("width", 2, a=a, b=b)
            check_equal("batch", 0, a=a, b=b)
            return self._products.nt(a, b)

    @do_not_convert
    def nn_op(self, a: TensorLike, b: TensorLike, name: str | None = None, bench: int = 0) -> tf.Tensor:
        """sum_k a_qk b_k, [batch, query_time, heads * d], of a block-sparse a and b over key_time."""
        with tf.name_scope(name or "nn_op"):
            return self._products.nn(self._matrix("a", a), self._operand("b", b, self.ctx_blks_k))

    @do_not_convert
    def tn_op(self, a: TensorLike, b: TensorLike, name: str | None = None, bench: int = 0) -> tf.Tensor:
        """sum_q a_qk^T b_q, [batch, key_time, heads * d], of a block-sparse a and b over query_time."""
        with tf.name_scope(name or "tn_op"):
            return self._products.tn(self._matrix("a", a), self._operand("b", b, self.ctx_blks_q))

    @do_not_convert
    def masked_softmax(
        self,
        x: TensorLike,
        scale: TensorLike = 1.0,
        autoregress_at_key: TensorLike | None = None,
        dtype: tf.DType | str | None = None,
    ) -> tf.Tensor:
        """Softmax of scale * x along each query's visible keys; 0 where invisible, and in rows that see nothing.

        scale: a number, or a scalar tensor or variable, which gets its gradient.
        autoregress_at_key: a key number or a scalar integer tensor: keys from there on are also invisible to
            the queries before them; below it the mask alone decides. Raises ValueError without a
            mask_callback.
        dtype: of the result; by default q's in the last query_key_op, or else x's.
        """
        if autoregress_at_key is not None and not self.has_mask:
            raise ValueError("autoregress_at_key needs a BlocksparseTransformer with a mask_callback")
        visible = self._visible(autoregress_at_key) if self.has_mask else None
        return self._softmax(x, scale, visible, dtype)

    @do_not_convert
    def softmax(
        self, x: TensorLike, scale: TensorLike = 1.0, dtype: tf.DType | str | None = None
    ) -> tf.Tensor:
        """masked_softmax without the mask: every key of an active block is visible."""
        return self._softmax(x, scale, None, dtype)

    def _softmax(self, x, scale, visible, dtype):
        x = self._matrix("x", x)
        dtype = tf.as_dtype(dtype or self.softmax_dtype or x.dtype)
        x, scale = scaled(x, scale)
        return self._products.softmax(x, scale, visible, dtype)

    @cached_property
    def _products(self) -> BlockProducts:
        if self.blocks == 0:
            raise ValueError(
                "layout has no active block; the separate steps need one, attention(q, k, v) does not"
            )
        query, key = np.moveaxis(self.nt_lut, 2, 0)
        return BlockProducts(query, key, self.ctx_blks_q, self.ctx_blks_k, self.blk_size, self.heads)

    def _visible(self, autoregress_at_key):
        """bool [lut_heads, blocks, bs, bs]: who sees whom."""
        seen = tf.gather(as_bool(self.active.masks), self.mask_numbers)
        if autoregress_at_key is None:
            return seen
        query, key = map(tf.constant, self.positions)
        first = key_number(autoregress_at_key, self.ctx_blks_k * self.blk_size)
        return seen & ((key < first) | (key <= query))

    def _operands(
        self, q: TensorLike, k: TensorLike, v: TensorLike, kv_heads: int, any_time: bool
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        q = self._operand("q", q, self.ctx_blks_q, None, any_time)
        k, v = (self._operand(n, x, self.ctx_blks_k, kv_heads, any_time) for n, x in (("k", k), ("v", v)))
        check_equal("time", 1, k=k, v=v)
        if kv_heads == self.heads:
            check_equal("width", 2, q=q, k=k)
        else:
            check_key_width(self.heads, kv_heads, q.shape.as_list()[2], k.shape.as_list()[2])
        check_equal("batch", 0, q=q, k=k, v=v)
        if not q.dtype == k.dtype == v.dtype:
            raise TypeError(
                f"q is {q.dtype.name}, k {k.dtype.name}, v {v.dtype.name}; cast them to one dtype"
            )
        return q, k, v

    def _operand(
        self, name: str, x: TensorLike, blocks: int, heads: int | None = None, any_time: bool = False
    ) -> tf.Tensor:
        """x as a tensor [batch, time, heads * d]; the batch alone may be unknown, with any_time also the time."""
        x, time, heads = float_tensor(name, x), blocks * self.blk_size, heads or self.heads
        shape = x.shape.as_list() if x.shape.rank == 3 else [None] * 3
        fits = shape[1] == time or (any_time and x.shape.rank == 3 and (shape[1] or 0) <= time)
        if not fits or shape[2] is None:
            up_to = "up to " if any_time else ""
            raise ValueError(
                f"{name} has shape {x.shape}; it has to be [batch, {up_to}{time}, {heads} heads * d] ({blocks} "
                f"blocks of {self.blk_size}); only the batch may be unknown (tf.ensure_shape states a shape)"
            )
        check_heads(heads, f"the width of {name}", shape[2], "heads" if heads == self.heads else "kv_heads")
        return x

    def _matrix(self, name: str, x: TensorLike) -> tf.Tensor:
        """x as a block-sparse matrix."""
        x, shape = float_tensor(name, x), (self.heads, self.blocks, *self.blk_shape)
        if not x.shape[1:].is_compatible_with(shape) or x.shape.rank is None:
            raise ValueError(
                f"{name} has shape {x.shape}; it has to be [batch, {', '.join(map(str, shape))}]"
            )
        return x

    def among(
        self, layouts: Sequence[BlocksparseTransformer], longest: int, looks_ahead: bool
    ) -> BlocksparseTransformer:
        """This object, whose attention on tensors of unknown time takes the first of `layouts` that is long enough.

        layouts: objects of the same pattern, ascending in time, this one the last. longest: the most rows there can be.
        looks_ahead: some query may see a key behind the tensors' end.
        """
        chosen = copy.copy(self)
        chosen._attention = Lengths([bst._attention for bst in layouts], longest, looks_ahead)
        return chosen

    def _as_pass(
        self, order: int | Sequence[int], first: BlocksparseTransformer
    ) -> tuple[Layout, tuple[int, ...]]:
        """What fused.op.attend takes, for one that is joined with `first` or is it."""
        own, wanted = (
            (bst.heads, bst.ctx_blks_q * bst.blk_size, bst.ctx_blks_k * bst.blk_size) for bst in (self, first)
        )
        if own != wanted:
            raise ValueError(
                f"joined has an object of {described(own)}; all passes need the first one's {described(wanted)}"
            )
        return self._attention, self._check_order(order)

    def _check_order(self, order: int | Sequence[int]) -> tuple[int, ...]:
        """One number for each head."""
        numbers = np.asarray(order)
        if numbers.dtype.kind not in "iu":
            raise TypeError(f"order is {order!r}; it has to be a positive int, or one for each head")
        if numbers.shape not in ((), (self.heads,)):
            raise ValueError(
                f"order has {numbers.size} numbers; give one, or one for each of {self.heads} heads"
            )
        check_residues(numbers, self.active.query_time, self.active.key_time, self.blk_size)
        return tuple(np.broadcast_to(numbers, self.heads).tolist())
