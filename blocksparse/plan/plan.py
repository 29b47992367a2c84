"""The tile plan that every kernel follows: block lists and masks in, gathered and masked tiles out (NumPy only).

A row tile is up to M rows. The columns that its rows see are packed side by side into column tiles of N.
Column tiles that every row sees whole come first and need no mask; the others name an M x N bit mask out of a
table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .blocks import Blocks, HeadBlocks
from .tiling import TilePlan, plan_side

TILES = (16, 32, 64, 128)
ROW_TILES = *TILES, 192  # three times what a warpgroup computes


@dataclass(frozen=True, eq=False)
class Plan:
    """Both sides of an attention: by_query drives the output and dq, by_key drives dk and dv."""

    query_time: int
    key_time: int
    head_index: np.ndarray  # int32 [heads] the distinct head that head h is like
    residues: np.ndarray  # int32 [heads] s: plan row r is tensor row (r % (n / s)) * s + r // (n / s)
    by_query: TilePlan  # rows are queries, columns are keys
    by_key: TilePlan  # rows are keys, columns queries: those of the key head's first query head, then its second's ...
    key_index: np.ndarray  # int32 [kv_heads] the distinct key head, one of by_key, that key head h is like

    @property
    def group(self) -> int:
        """How many query heads read one key head: query head h reads key head h // group."""
        return len(self.head_index) // len(self.key_index)

    @property
    def closed(self) -> int:
        """1 where every key is in the columns of just one row tile of by_query (residue classes, chunks), 2 where every
        row tile also has just one column tile, else 0.
        """
        side, granules = self.by_query, self.key_time // self.by_query.granule
        real = side.columns != side.columns[:, :1]
        real[:, 0] = True
        distinct = len(side.head_tiles) - 1
        if real.sum() != distinct * granules:
            return 0
        head = np.repeat(np.repeat(np.arange(distinct), np.diff(side.head_tiles)), np.diff(side.offset))
        if len(np.unique((head[:, None] * granules + side.columns)[real])) < distinct * granules:
            return 0
        return 2 if np.all(np.diff(side.offset) == 1) else 1


def make_plan(
    blocks: Blocks,
    residues: int | Sequence[int] = 1,
    heads: int | None = None,
    tiles_by_query: tuple[int, int] = (64, 64),
    tiles_by_key: tuple[int, int] = (64, 64),
    kv_heads: int | None = None,
) -> Plan:
    """Plan an attention over `blocks` in row tiles of M and column tiles of N.

    residues: s, one number or one a head: row r of the layout is row (r % (n / s)) * s + r // (n / s) of the
        tensor, so that s = stride puts the rows of one residue class side by side.
    heads: how many heads there are, where `blocks` describes one for all.
    tiles_by_query, tiles_by_key: (M, N) of each side, out of 16, 32, 64, 128; M may be 192 too.
    kv_heads: heads of the keys, a divisor of heads; as many as heads by default. Query heads that read one key head
        have the same number of residues.
    Raises ValueError for a number of residues that does not divide both times into whole blocks, or a tile size not
    offered.
    """
    for name, tiles in (("tiles_by_query", tiles_by_query), ("tiles_by_key", tiles_by_key)):
        if len(tiles) != 2 or tiles[0] not in ROW_TILES or tiles[1] not in TILES:
            raise ValueError(
                f"{name}={tiles}; it has to be two of {TILES}, or {ROW_TILES[-1]} and one of them"
            )
    head_index = np.broadcast_to(blocks.head_index, heads or len(blocks.head_index))
    classes = np.broadcast_to(np.asarray(residues, np.int32), head_index.shape)
    check_residues(classes, blocks.query_time, blocks.key_time, blocks.block_size)
    by_query = plan_side(
        list(blocks.heads), blocks.masks, blocks.query_blocks, blocks.key_blocks, *tiles_by_query
    )
    kv_heads = kv_heads or len(head_index)
    check_groups(classes, kv_heads)
    members, key_index = np.arange(len(blocks.heads))[:, None], head_index
    if kv_heads < len(head_index):
        members, key_index = np.unique(head_index.reshape(kv_heads, -1), axis=0, return_inverse=True)
        key_index = key_index.reshape(-1).astype(np.int32)
    turned, turned_masks = [_readers(blocks, own) for own in members], blocks.masks.transpose(0, 2, 1)
    sizes = blocks.key_blocks, blocks.query_blocks
    by_key = plan_side(turned, turned_masks, *sizes, *tiles_by_key, members=members.shape[1])
    return Plan(blocks.query_time, blocks.key_time, head_index, classes, by_query, by_key, key_index)


def _readers(blocks: Blocks, members: np.ndarray) -> HeadBlocks:
    """A key head's blocks, by key: of the distinct heads that read it, each one's queries behind those before."""
    heads = [blocks.heads[member] for member in members]
    queries = [head.query + number * blocks.query_blocks for number, head in enumerate(heads)]
    return HeadBlocks(
        query=np.concatenate([head.key for head in heads]),
        key=np.concatenate(queries),
        mask=np.concatenate([head.mask for head in heads]),
    )


def check_groups(residues: np.ndarray, kv_heads: int) -> None:
    """Raise ValueError unless query heads that read one key head have one order."""
    if kv_heads < 1 or len(residues) % kv_heads:
        raise ValueError(f"kv_heads={kv_heads} does not divide the {len(residues)} heads")
    groups = residues.reshape(kv_heads, -1)
    if np.any(groups != groups[:, :1]):
        raise ValueError(
            f"order={residues.tolist()}: query heads that read one of {kv_heads} key heads need one order"
        )


def check_residues(residues: np.ndarray, query_time: int, key_time: int, unit: int) -> None:
    """Raise ValueError unless each side's residue classes, time / residues rows each, are whole units.

    The sentence says `order`, as the public argument of BlocksparseTransformer.attention is called.
    """
    for stride in np.unique(residues).tolist():
        if stride < 1 or (stride > 1 and (query_time % (stride * unit) or key_time % (stride * unit))):
            raise ValueError(
                f"order={stride} has to divide query time {query_time} and key time {key_time} into residue "
                f"classes of a multiple of {unit} rows"
            )
