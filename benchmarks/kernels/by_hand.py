"""What the tuned table has that gpu_tuning.py's grid has not timed: rows chosen by hand, of single kernels in variants
(LOG.md, sections 31 and 36) and then through TensorFlow, and rows that were not measured at all.

All launches are of kernels with warp roles.
"""

from __future__ import annotations

NAMES = {"forward": "attention_forward", "dq": "attention_query_gradient", "dkv": "attention_key_gradient"}
# Not measured: rows that keep shapes without a case of their own inside registers and shared memory.
UNMEASURED = [
    dict(dtype="half", dim=128, work=64, by_query=[32, 32], by_key=[32, 32]),
    dict(dtype="half", dim=256, work=None, by_query=[64, 32], by_key=[64, 32]),
    dict(dtype="single", dim=128, work=None, by_query=[32, 32], by_key=[32, 32]),
    dict(dtype="single", dim=256, work=None, by_query=[16, 16], by_key=[16, 16]),
]
# Dense rows that were slower on row tiles of 192 through TensorFlow (LOG.md, section 34), and keep the tiles of others:
# of at most so many columns on average, or of head_dim 16.
OTHERS = {
    32: dict(by_query=[64, 64], by_key=[128, 64]),
    64: dict(by_query=[128, 64], by_key=[128, 64], roles=True),
}
KEPT = [
    dict(dtype="half", dim=16, work=None) | OTHERS[32],
    dict(dtype="half", dim=32, work=4000) | OTHERS[32],
    dict(dtype="half", dim=64, work=600) | OTHERS[64],
]
# Dense rows, by head_dim.
DENSE_TILES = {
    32: dict(by_query=[192, 128], by_key=[192, 64], roles=True),
    64: dict(by_query=[192, 128], by_key=[128, 64], roles=True),
}
DENSE = {  # (kernel, dim, M, N, long): stages, heaviest_first, roles, programs
    ("forward", 32, 192, 128, True): (3, False, 128, 1),
    ("dq", 32, 192, 128, True): (4, False, 64, None),
    ("dkv", 32, 192, 64, True): (3, False, 64, None),
    ("forward", 64, 192, 128, True): (4, False, 128, None),
    ("dq", 64, 192, 128, True): (4, False, 64, None),
    ("forward", 64, 192, 128, False): (4, True, 128, None),
    ("dq", 64, 192, 128, False): (4, True, 64, None),
}
# Layouts whose neighbouring rows see different columns: twice as many as each, from SCATTER on (see tuning.choose).
SCATTER = 1.5
SCATTERED_TILE = [64, 128]
SCATTERED = {  # (kernel, dim): stages, registers, roles, programs
    ("forward", 32): (4, 64, 64, None),
    ("dq", 32): (4, 80, 64, None),
    ("dkv", 32): (4, 120, 64, None),
    ("forward", 64): (3, 80, 64, None),
    ("dq", 64): (3, 80, 64, None),
    ("dkv", 64): (4, 120, 64, None),
    ("forward", 128): (2, 120, 64, None),
    ("dq", 128): (3, 128, 32, None),
    ("dkv", 128): (2, 128, 32, 2),
}
# Rows of head_dim 64 that see few columns: windows, and residue classes of more than 64 rows.
SHORT_TILES = [
    dict(dtype="half", dim=64, work=33, reordered=True, by_query=[32, 32], by_key=[32, 32]),
    dict(dtype="half", dim=64, work=64, reordered=True, by_query=[64, 64], by_key=[64, 64], roles=True),
    dict(dtype="half", dim=64, work=160, by_query=[64, 64], by_key=[128, 64], roles=True),
]
SHORT = {"forward": (3, 80, 64, 3), "dq": (2, 80, 64, 3), "dkv": (6, 128, 32, 2)}  # as in SCATTERED


def tiles() -> list[dict]:
    """Rows of tiles, but for those of dense rows."""
    small = dict(by_query=SCATTERED_TILE, by_key=SCATTERED_TILE, roles=True)
    dims = sorted({dim for _, dim in SCATTERED})
    scattered = [dict(dtype="half", dim=dim, work=None, scatter=SCATTER) | small for dim in dims]
    return [*UNMEASURED, *KEPT, *SHORT_TILES, *scattered]


def dense_launches(dims: set[int]) -> list[dict]:
    """The launches of dense rows of these dims."""
    return [
        launch(kernel, dim, [m, n], long, stages, 128, roles, programs) | dict(heaviest_first=heaviest_first)
        for (kernel, dim, m, n, long), (stages, heaviest_first, roles, programs) in DENSE.items()
        if dim in dims
    ]


def scattered_launches() -> list[dict]:
    """The launches of SCATTERED, for short rows and long ones: a head after the other, its heaviest rows first."""
    order = dict(heaviest_first=True, heads_in_turn=True)
    return [
        launch(kernel, dim, SCATTERED_TILE, long, *how) | order
        for (kernel, dim), how in SCATTERED.items()
        for long in (False, True)
    ]


def short_launches(launches: list[dict]) -> list[dict]:
    """The launches of SHORT, which stand in front of the plain ones of the same tiles, and before them copies of those
    for narrower heads, which keep them.
    """
    kept = [
        row | dict(dim=32)
        for row in launches
        if (row["dim"], row["m"], row["n"], row["long"]) == (64, 64, 64, False) and not row.get("roles")
    ]
    return kept + [launch(kernel, 64, [64, 64], False, *how) for kernel, how in SHORT.items()]


def launch(kernel: str, dim: int, tile: list[int], long: bool, stages, registers, roles, programs) -> dict:
    """A row of launches."""
    name = dict(kernel=NAMES[kernel], dtype="half", dim=dim, m=tile[0], n=tile[1], long=long)
    how = dict(warps=4, stages=stages, registers=registers, split=False, heaviest_first=False, roles=roles)
    return name | how | (dict(programs=programs) if programs else {})
