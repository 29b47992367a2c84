"""What is measured: cases as `attention_impl` names them, their predicates, blocks and plans.

The planner is imported where it is used: with TensorFlow around it or, after `without_tensorflow`, without is the
process's choice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from blocksparse.plan import Blocks, Plan
    from blocksparse.plan.modes import Mode

Tiles = tuple[int, int]  # rows of a row tile, columns of a column tile


@dataclass(frozen=True)
class Case:
    """Sizes and the pattern of one attention; `name` is the case's key in the committed results."""

    name: str
    batch: int
    heads: int
    time: int
    dim: int
    attn_mode: str
    blocksize: int = 32
    local_attn_ctx: int | None = None
    num_verts: int | None = None
    vertsize: int | None = None
    kv_heads: int | None = None  # as many as heads by default
    documents: int | None = None  # positions of each document in a row; a query sees keys of its own alone
    density: float | None = None  # of attn_mode "blocks", a causal layout: the share that is seen

    @property
    def group(self) -> int:
        """Heads that read one key head."""
        return self.heads // (self.kv_heads or self.heads)

    @property
    def pattern(self) -> dict:
        """The arguments of `attention_impl` after q, k, v and heads."""
        names = ("attn_mode", "local_attn_ctx", "blocksize", "num_verts", "vertsize")
        return {name: getattr(self, name) for name in names}

    @property
    def width(self) -> int:
        """Summary columns a head has in each chunk."""
        return self.vertsize * self.blocksize

    @property
    def residues(self) -> int:
        """The plan's row order: `strided` is block-diagonal once positions equal modulo the stride lie together."""
        return self.local_attn_ctx if self.attn_mode == "strided" else 1

    @property
    def label(self) -> str:
        """The row's name in tables and pictures: batch x heads x time x head_dim and the pattern."""
        return f"{self.batch}x{self.heads}x{self.time}x{self.dim} {self.pattern_label}"

    @property
    def pattern_label(self) -> str:
        if self.attn_mode == "all":
            return "all"
        if self.attn_mode == "fixed":
            return f"fixed, l={self.local_attn_ctx}, c={self.width}"
        if self.attn_mode == "blocks":
            return f"blocks of {self.blocksize}, {self.density:.0%}"
        return f"{self.attn_mode}, l={self.local_attn_ctx}"

    def sees(self, head: int) -> Callable:
        """Of one head the predicate of (query, key): positions, as arrays of NumPy, TensorFlow or PyTorch."""
        if self.attn_mode == "blocks":
            size = self.blocksize
            return lambda query, key: (query >= key) & self.shows(query // size, key // size)
        modes = _modes(self)
        return self.within_documents(modes[head % len(modes)].pattern().sees)

    def shows(self, query, key):
        """With attn_mode "blocks", whether query block sees key block: by a number below 1,009 that looks drawn, of
        arithmetic that every array library has and that int32 holds up to 1,000 blocks.
        """
        drawn = (query * query * 331 + key * key * 613 + query * key * 877) % 1009
        return (drawn < round(self.density * 1009)) | (query == key)

    def within_documents(self, sees: Callable) -> Callable:
        """A predicate that holds inside a document only, where there are several."""
        size = self.documents
        if size is None:
            return sees
        return lambda query, key: sees(query, key) & (query // size == key // size)


GPU = (
    Case("enwik8 fixed c32", 4, 8, 12288, 64, "fixed", 32, 128, 4, 1),
    Case("enwik8 fixed c8", 4, 8, 12288, 64, "fixed", 8, 128, 8, 1),
    Case("enwik8 local", 4, 8, 12288, 64, "local", 32, 128),
    Case("cifar local", 16, 2, 3072, 128, "local", 32, 128),
    Case("cifar strided", 16, 2, 3072, 128, "strided", 8, 128),
    Case("imagenet64 local", 4, 16, 12288, 32, "local", 32, 128),
    Case("imagenet64 strided", 4, 16, 12288, 32, "strided", 32, 128),
    Case("enwik8 all", 4, 8, 12288, 64, "all", 64),
    Case("cifar all", 16, 2, 3072, 128, "all", 64),
    Case("imagenet64 all", 4, 16, 12288, 32, "all", 64),
    Case("audio16k fixed", 1, 8, 16384, 64, "fixed", 32, 256, 8, 1),
    Case("audio fixed", 1, 8, 65536, 64, "fixed", 32, 256, 8, 1),
    Case("audio16k local", 1, 8, 16384, 64, "local", 32, 256),
    Case("audio local", 1, 8, 65536, 64, "local", 32, 256),
    Case("audio16k strided", 1, 8, 16384, 64, "strided", 32, 256),
    Case("audio strided", 1, 8, 65536, 64, "strided", 32, 256),
    Case("enwik8 fixed c32 of 128", 4, 8, 12288, 128, "fixed", 32, 128, 4, 1),
    Case("enwik8 fixed c8 of 128", 4, 8, 12288, 128, "fixed", 8, 128, 8, 1),
    Case("enwik8 strided", 4, 8, 12288, 64, "strided", 32, 128),
    Case("enwik8 local+strided", 4, 8, 12288, 64, "local+strided", 32, 128),
    Case("blocks of 64", 1, 16, 40960, 128, "blocks", 64, density=0.1),
    Case("enwik8 fixed c32, 2 key heads", 4, 8, 12288, 64, "fixed", 32, 128, 4, 1, kv_heads=2),
    Case("enwik8 local, 2 key heads", 4, 8, 12288, 64, "local", 32, 128, kv_heads=2),
    Case("enwik8 all, documents of 1024", 4, 8, 12288, 64, "all", 64, documents=1024),
    Case("enwik8 fixed c32, documents of 1024", 4, 8, 12288, 64, "fixed", 32, 128, 4, 1, documents=1024),
    Case("enwik8 local, documents of 1024", 4, 8, 12288, 64, "local", 32, 128, documents=1024),
)
# Dense rows of few column tiles, for the tables alone.
SHORT = (
    Case("short all", 8, 8, 1536, 64, "all", 64),
    Case("short all 32", 8, 16, 1536, 32, "all", 64),
)
CPU = (
    Case("all", 1, 4, 4096, 64, "all"),
    Case("fixed 128, c=32", 1, 4, 4096, 64, "fixed", 32, 128, 4, 1),
    Case("local 128", 1, 4, 4096, 64, "local", 32, 128),
    Case("strided 128", 1, 4, 4096, 64, "strided", 32, 128),
)
# Smaller and larger blocks over summaries of 64 columns: what small blocks cost.
CPU_BLOCKS = tuple(
    Case(f"fixed 128, c=64, blocks of {size}", 1, 4, 4096, 64, "fixed", size, 128, 2, 64 // size)
    for size in (8, 64)
)
CONTEXTS = {1024: 32, 4096: 64, 16384: 128, 65536: 256, 262144: 512, 1048576: 1024}  # n: l = sqrt(n)


def at_context(attn_mode: str, time: int) -> Case:
    """Two heads of 64 over `time` positions, a key of CONTEXTS, whose root is the window, stride or chunk."""
    blocksize = 8 if attn_mode == "fixed" else 32
    return Case(f"{attn_mode} {time}", 1, 2, time, 64, attn_mode, blocksize, CONTEXTS[time], 2, 1)


def _modes(case: Case) -> tuple[Mode, ...]:
    """What head h does, at h % len(result)."""
    from blocksparse.plan.modes import head_modes

    return head_modes(heads=case.heads, **case.pattern)


def layout(case: Case) -> np.ndarray:
    """Of attn_mode "blocks": bool [query blocks, key blocks]."""
    query, key = np.indices([case.time // case.blocksize] * 2)
    return (query >= key) & case.shows(query, key)


def causal(blk_shape, head_idx, qry_idx, key_idx, blk_idx) -> np.ndarray:
    """The mask callback of `layout`."""
    return np.tri(*blk_shape, dtype=bool) if qry_idx == key_idx else np.ones(blk_shape, bool)


def blocks(case: Case) -> Blocks:
    """Active blocks and their masks, in the plan's row order."""
    from blocksparse.plan import build_blocks
    from blocksparse.plan.callback import PlannedCallback

    if case.attn_mode == "blocks":
        return build_blocks(layout(case), case.blocksize, causal, case.heads)
    callback = PlannedCallback([mode.one_pass(case.time) for mode in _modes(case)], case.blocksize)
    count = case.time // case.blocksize
    return build_blocks(callback.layouts(case.heads, count, count), case.blocksize, callback, case.heads)


def plan(case: Case, by_query: Tiles, by_key: Tiles, made: Blocks | None = None) -> Plan:
    from blocksparse.plan import make_plan

    return make_plan(made or blocks(case), case.residues, case.heads, by_query, by_key, case.kv_heads)


def work(made: Blocks) -> float:
    """Keys that a query sees, the mean over rows and heads."""
    seen = made.masks.sum((1, 2))
    pairs = [seen[made.heads[number].mask].sum() for number in made.head_index]
    return float(np.mean(pairs)) / made.query_time


def over(case: Case, time: int) -> Case:
    """The same pattern over another number of positions."""
    return replace(case, time=time)
