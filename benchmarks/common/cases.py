"""The GPU benchmark's cases and their plans. NumPy and the planner only: every process may import it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from blocksparse.plan import Blocks, Plan, build_blocks, make_plan


@dataclass(frozen=True)
class Case:
    """One row of the table. pattern: all | local:window | strided:stride | fixed:size:width:groups."""

    name: str
    batch: int
    heads: int
    time: int
    dim: int
    pattern: str
    bs: int

    @property
    def kind(self) -> str:
        return self.pattern.split(":")[0]

    @property
    def numbers(self) -> list[int]:
        return [int(word) for word in self.pattern.split(":")[1:]]

    @property
    def order(self) -> int:
        """strided is block-diagonal in the plan's order: position within a residue class fastest."""
        return self.numbers[0] if self.kind == "strided" else 1


CASES = [
    Case("enwik8 fixed c32", 4, 8, 12288, 64, "fixed:128:32:4", 32),
    Case("enwik8 fixed c8", 4, 8, 12288, 64, "fixed:128:8:8", 8),
    Case("enwik8 local", 4, 8, 12288, 64, "local:128", 32),
    Case("cifar local", 16, 2, 3072, 128, "local:128", 32),
    Case("cifar strided", 16, 2, 3072, 128, "strided:128", 8),
    Case("imagenet64 local", 4, 16, 12288, 32, "local:128", 32),
    Case("imagenet64 strided", 4, 16, 12288, 32, "strided:128", 32),
    Case("enwik8 all", 4, 8, 12288, 64, "all", 64),
    Case("cifar all", 16, 2, 3072, 128, "all", 64),
    Case("imagenet64 all", 4, 16, 12288, 32, "all", 64),
    Case("audio16k fixed", 1, 8, 16384, 64, "fixed:256:32:8", 32),
    Case("audio fixed", 1, 8, 65536, 64, "fixed:256:32:8", 32),
    Case("audio16k local", 1, 8, 16384, 64, "local:256", 32),
    Case("audio local", 1, 8, 65536, 64, "local:256", 32),
    Case("audio16k strided", 1, 8, 16384, 64, "strided:256", 32),
    Case("audio strided", 1, 8, 65536, 64, "strided:256", 32),
]


def sees(case: Case, head, query, key):
    """Who sees whom, in tensor rows; arrays of NumPy or PyTorch."""
    past = query >= key
    if case.kind == "all":
        return past
    if case.kind == "local":
        return past & (query - key < case.numbers[0])
    if case.kind == "strided":
        return past & ((query - key) % case.numbers[0] == 0)
    size, width, groups = case.numbers
    last = size - head % groups * width
    return past & ((query // size == key // size) | ((key % size >= last - width) & (key % size < last)))


def blocks(case: Case) -> Blocks:
    """Block lists and masks. Every pattern here is the causal triangle inside a few kinds of blocks."""
    bs, rows = case.bs, case.time // case.bs
    heads = case.numbers[2] if case.kind == "fixed" else 1
    i, j = np.arange(rows)[:, None], np.arange(rows)[None, :]
    if case.kind == "local":
        layout = (i >= j) & ((i - j) * bs - (bs - 1) < case.numbers[0])
    elif case.kind == "strided":
        run = case.time // case.numbers[0]  # rows of a residue class, side by side in the plan's order
        layout = (i >= j) & (i * bs // run == j * bs // run)
    else:
        layout = np.stack([sees(case, head, i * bs, j * bs) for head in range(heads)])

    def callback(blk_shape, head, query, key, blk):
        return callback.batch(blk_shape, [head], np.array([query]), np.array([key]), [blk])[0]

    def batch(blk_shape, head, query, key, blk):
        distance = (query - key)[:, None, None] * bs + np.arange(bs)[:, None] - np.arange(bs)
        return (distance >= 0) & (distance < (case.numbers[0] if case.kind == "local" else case.time))

    callback.batch = batch
    callback.representative = lambda head, query, key: (query - key, np.zeros_like(key))
    callback.distinct_heads = 1
    return build_blocks(
        layout if layout.ndim == 3 else layout[None].repeat(case.heads, 0)[: case.heads], bs, callback, None
    )


def plan(case: Case, tiles_by_query: tuple[int, int], tiles_by_key: tuple[int, int], made: Blocks) -> Plan:
    """The plan of all the case's heads."""
    repeats = case.heads // len(made.head_index)
    made = replace(made, head_index=np.tile(made.head_index, repeats))
    return make_plan(made, case.order, case.heads, tiles_by_query, tiles_by_key)


def visible_elements(case: Case) -> int:
    """Elements of the score matrices that are seen, over batch and heads."""
    n, heads = case.time, case.heads
    if case.kind == "all":
        one = [n * (n + 1) // 2]
    elif case.kind == "local":
        window = case.numbers[0]
        one = [n * window - window * (window - 1) // 2]
    elif case.kind == "strided":
        stride = case.numbers[0]
        run = n // stride
        one = [stride * run * (run + 1) // 2]
    else:
        size, width, groups = case.numbers
        chunks = n // size
        earlier = chunks * (chunks - 1) // 2 * size * width
        one = [chunks * size * (size + 1) // 2 + earlier] * groups
    return case.batch * heads * sum(one) // len(one)
