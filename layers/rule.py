"""Who sees whom in a layer, without its weights: what two layers alike have in common."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any, NamedTuple

import tensorflow as tf

from blocksparse import BlocksparseTransformer
from blocksparse.plan.modes import head_modes
from blocksparse.transformer.predicate import of_any_time

from ..attention import attention_impl, blocksparse_passes
from .written_out import Attention


class Rule(NamedTuple):
    """The attention of a SparseSelfAttention; has a hash. pattern: names and values, as attention.py takes them."""

    pattern: tuple[tuple[str, Any], ...]
    kv_heads: int | None
    blocksparse: bool
    sees: Any
    max_time: int

    def passes(self, time: int | None, segments: Any = None) -> Attention:
        """Attention and its gradient, apart, for rows of `time` positions; segments: as segment_ids."""
        pattern = dict(self.pattern)
        full = segments is None and self.sees is None and all(m.sees_itself for m in head_modes(**pattern))
        sharing = dict(kv_heads=self.kv_heads, segment_ids=segments)
        if not self.blocksparse:
            return Attention(
                partial(_dense, pattern | sharing), partial(_dense_gradient, pattern | sharing), full
            )
        if self.sees is None:
            bst, order, joined = blocksparse_passes(time, **pattern, max_time=self.max_time)
        else:
            bst, order, joined = self.own_pattern(time), 1, []
        given = dict(order=order, joined=joined, any_time=True, **sharing)
        return Attention(
            partial(bst.attention, with_lse=True, **given), partial(bst.attention_grad, **given), full
        )

    def own_pattern(self, time: int | None) -> BlocksparseTransformer:
        """Of `sees`."""
        pattern = dict(self.pattern)
        return _transformer(self.sees, time, self.max_time, pattern["heads"], pattern["blocksize"])


def _dense(arguments: dict, q, k, v):
    return attention_impl(q, k, v, **arguments), None


def _dense_gradient(arguments: dict, q, k, v, out, lse, dout):
    with tf.GradientTape() as tape:
        tape.watch([q, k, v])
        out, _ = _dense(arguments, q, k, v)
    return tape.gradient(out, [q, k, v], output_gradients=dout)


@lru_cache(maxsize=64)
def _transformer(
    sees, n_ctx: int | None, max_time: int, heads: int, blocksize: int
) -> BlocksparseTransformer:
    return of_any_time(sees, n_ctx, max_time, heads, blocksize)
