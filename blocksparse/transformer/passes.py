"""From the modes of heads to the objects whose attentions, joined, are theirs: one pass for each order of rows."""

from __future__ import annotations

from functools import lru_cache

from ..plan.lengths import Whole, keys_there, ladder, whole
from ..plan.modes import Mode
from ..plan.patterns import nothing
from .object import BlocksparseTransformer
from .predicate import assemble


@lru_cache(maxsize=64)
def passes(
    n_ctx: int, heads: int, modes: tuple[Mode, ...], blocksize: int
) -> list[tuple[BlocksparseTransformer, list]]:
    """(object, order of each head) of each pass over n_ctx positions."""
    return _objects(whole(modes, n_ctx, blocksize), heads, modes)


@lru_cache(maxsize=64)
def passes_up_to(
    max_time: int, heads: int, modes: tuple[Mode, ...], blocksize: int
) -> list[tuple[BlocksparseTransformer, list]]:
    """The same over any number of positions up to max_time."""
    steps = [_objects(step, heads, modes) for step in ladder(modes, max_time, blocksize)]
    return [
        (
            bst.among([step[number][0] for step in steps], max_time, any(mode.looks_ahead for mode in modes)),
            order,
        )
        for number, (bst, order) in enumerate(steps[-1])
    ]


def _objects(plan: Whole, heads: int, modes: tuple[Mode, ...]) -> list[tuple[BlocksparseTransformer, list]]:
    """(object, order of each head) of each pass; a head with fewer than others sees nothing in the rest."""
    per_mode = [mode.passes(plan.rows, plan.sorted) for mode in modes]
    found = []
    for number in range(max(map(len, per_mode))):
        patterns, orders = zip(*(own[number] if number < len(own) else (nothing, 1) for own in per_mode))
        there = [
            keys_there(plan.rows, order, plan.time) if mode.looks_ahead else None
            for mode, order in zip(modes, orders, strict=True)
        ]
        bst = assemble(patterns, plan.rows, plan.rows, heads, plan.block_size, keys_there=there)
        found.append((bst, [orders[head % len(orders)] for head in range(heads)]))
    return found
