"""Tile sizes, warps and pipeline stages per GPU generation: tuned/sm_<capability>.json, written by the tuning script.

Imports neither Triton nor TensorFlow. A capability without a table takes the nearest lower one.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

FOLDER = Path(__file__).parent / "tuned"
LOWEST = 70  # below it there are no tensor cores
SCATTERED = 1.8  # from there on a CPU is faster in small tiles (benchmarks/LOG.md, section 38)
DTYPES = {"float16": "half", "bfloat16": "half", "float32": "single", "f16": "half", "bf16": "half"}
DTYPES |= {"f32": "single", "tf32": "single"}


@dataclass(frozen=True)
class Launch:
    """How one kernel runs: split and heaviest_first are the kernels' SPLIT and HEAVIEST_FIRST."""

    warps: int
    stages: int
    registers: int | None  # at most so many a thread, so that more programs share a multiprocessor
    split: bool
    heaviest_first: bool
    roles: int | None = None  # with warp roles: the columns that are computed at a time
    programs: int | None = None  # likewise: so many a multiprocessor, each taking row tile after row tile
    heads_in_turn: bool | None = None  # likewise: HEADS_IN_TURN


def padded(dim: int) -> int:
    """The power of two, at least 16, that a head's dimension is padded to inside the kernels."""
    return max(16, 1 << (dim - 1).bit_length())


def choose(
    dtype: str,
    head_dim: int,
    value_dim: int,
    granule: int,
    work: float,
    capability: int = 90,
    reordered: bool = False,
    share: float = 0.0,
    scatter: float = 1.0,
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Tiles (M, N) for the plan's two sides, by query and by key.

    Args:
        dtype: "float16", "bfloat16" or "float32".
        head_dim, value_dim: multiples of 8 up to 256.
        granule: the layout's block size.
        work: mean number of columns that a row sees, over all rows and heads.
        capability: the GPU's compute capability times ten.
        reordered: whether rows are ordered by residue class: tiles of whole classes then are closed.
        share: of all columns those that a row sees, on average: dense rows have tiles of their own, in their order.
        scatter: columns that row tiles of 128 visit in all, over those that tiles of 64 visit in as many rows, 1 to 2:
            where neighbours see different columns, small tiles compute less that nobody sees.
    """
    dim = padded(max(head_dim, value_dim))
    for row in table(capability)["tiles"]:
        dense = "share" not in row or (share >= row["share"] and not reordered)
        alike = dense and scatter >= row.get("scatter", 1.0)
        fits = dim <= row["dim"] and work <= (row["work"] or float("inf")) and alike
        if row["dtype"] == DTYPES[dtype] and fits and reordered >= row.get("reordered", False):
            return tuple(row["by_query"]), tuple(row["by_key"])
    raise ValueError(
        f"dtype={dtype}, head_dim={head_dim}, value_dim={value_dim}: no kernel; dims up to 256 have one"
    )


def common(capabilities: Sequence[int]) -> int:
    """Of the GPUs of one machine, the capability whose tiles all of them can run: one graph serves them all.

    The oldest, but where that has an H100's or a B200's shared memory (227 KiB a block) and beside it is a newer RTX
    (12.x) with 99 KiB.
    """
    oldest, newest = min(capabilities), max(capabilities)
    return newest if 90 <= oldest < 120 <= newest else oldest


def anywhere(dtype: str, head_dim: int, value_dim: int, block_size: int) -> tuple[int, int]:
    """(tile, small): how many rows and columns tiles have where no GPU is seen, and where rows `scatter` by SCATTERED
    or more from one size to the other. They also fit in the shared memory of every GPU that the graph may be loaded on
    (99 KiB from sm_86 on).
    """
    row = padded(max(head_dim, value_dim)) * (2 if DTYPES[dtype] == "half" else 4)
    tile = 64 if row <= 256 else 32 if row <= 512 else 16
    return tile, min(tile, max(16, block_size))


def launch(
    kernel: str,
    dtype: str,
    head_dim: int,
    value_dim: int,
    m: int,
    n: int,
    long_rows: bool,
    capability: int,
    plain: bool = False,
) -> Launch:
    """How `kernel` runs on M x N tiles: its row of the table, else a cautious default. plain: without warp roles."""
    dim = padded(max(head_dim, value_dim))
    wanted = dict(kernel=kernel, dtype=DTYPES[dtype], m=m, n=n, long=long_rows)
    for row in table(capability)["launches"]:
        fits = dim <= row["dim"] and not (plain and "roles" in row)
        if fits and all(row[name] == value for name, value in wanted.items()):
            return Launch(*(row.get(field.name) for field in fields(Launch)))
    warps, stages = _warps(DTYPES[dtype], m, dim), _stages(DTYPES[dtype], dim, n)
    return Launch(warps, stages, None, split=long_rows, heaviest_first=long_rows)


def roles(capability: int) -> bool:
    """Whether kernels with warp roles are compiled: Hopper's, by Triton 3.9 or newer (here, or where there is none
    here, on the machine that compiles).
    """
    return capability == 90 and _triton() >= (3, 9)


@functools.cache
def table(capability: int) -> dict:
    """The table of the nearest capability that is not above this one, without warp roles where there are none."""
    known = sorted(int(path.stem.removeprefix("sm_")) for path in FOLDER.glob("sm_*.json"))
    below = [one for one in known if one <= capability]
    if not below:
        raise ValueError(f"capability={capability}: the GPU kernels need {LOWEST} (sm_{LOWEST}) or newer")
    lists = json.loads((FOLDER / f"sm_{below[-1]}.json").read_text())
    if roles(capability):
        return lists
    return {name: [row for row in rows if "roles" not in row] for name, rows in lists.items()}


def _triton() -> tuple[int, ...]:
    """The first two numbers of Triton's version: read, not imported, since processes that hold TensorFlow ask too."""
    found = importlib.util.find_spec("triton")
    text = Path(found.origin).read_text() if found and found.origin else ""
    version = re.search(r"__version__ = ['\"](\d+)\.(\d+)", text)
    return tuple(map(int, version.groups())) if version else (3, 9)


def _warps(dtype: str, m: int, dim: int) -> int:
    if dtype == "single":
        return 8 if dim > 64 else 4
    if m <= 32:
        return 1 if m * dim <= 1024 else 2 if dim <= 64 else 4
    return 4 if m <= 64 and dim <= 128 else 8


def _stages(dtype: str, dim: int, n: int) -> int:
    """As many column tiles of K and V in flight as fit in 64 KiB, at most 3."""
    tile = 2 * n * dim * (2 if dtype == "half" else 4)
    return max(1, min(3, (64 << 10) // tile))
