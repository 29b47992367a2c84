"""Kernels in CUDA C++ for the GPUs that Triton has no tensor-core path for: compute capability 7.0 and 7.5.

They follow the same plan, manifest and launcher as ../kernels. Imports neither Triton nor TensorFlow.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
LEAST, TRITON = 70, 80  # from the first compute capability (times ten) up to the second these kernels serve
SHARED = {70: 96 << 10, 75: 64 << 10}  # bytes of shared memory that a block may have


@dataclass(frozen=True)
class _Cut:
    """What a warp's registers take, for heads up to a dimension."""

    dim: int
    warp_rows: int
    width: int  # columns of results that a warp holds
    columns: int  # of a column tile at a time
    blocks: int = 2  # of up to four warps, on a multiprocessor: registers are allotted so that they fit
    rows: int = 64  # of a block, at most


_CUTS = {  # by engine and kernel; from ptxas's registers and spills, for turing also from times (benchmarks/LOG.md)
    "volta": dict(
        attention_forward=(_Cut(128, 32, 64, 32), _Cut(256, 32, 64, 16)),
        attention_query_gradient=(_Cut(128, 32, 64, 32), _Cut(256, 32, 64, 16)),
        attention_key_gradient=(_Cut(256, 32, 64, 16),),
    ),
    "turing": dict(
        attention_forward=(_Cut(64, 32, 64, 32, rows=128), _Cut(128, 16, 128, 32), _Cut(256, 16, 128, 16)),
        attention_query_gradient=(_Cut(64, 16, 64, 32, 3), _Cut(128, 16, 128, 32), _Cut(256, 16, 128, 16)),
        attention_key_gradient=(_Cut(64, 16, 64, 32), _Cut(128, 16, 64, 32), _Cut(256, 16, 64, 16)),
    ),
    "single": dict(
        attention_forward=(_Cut(128, 16, 128, 32), _Cut(256, 16, 128, 8)),
        attention_query_gradient=(_Cut(256, 16, 128, 32),),
        attention_key_gradient=(_Cut(256, 16, 64, 32),),
    ),
}


@dataclass(frozen=True)
class Shape:
    """How one kernel cuts the plan's tiles: any plan's fit, also one made for another GPU."""

    rows: int  # of a row tile that one block of threads computes
    columns: int  # of a column tile that are multiplied at a time
    warp_rows: int  # of a warp
    slices: int  # warps that share rows, each with a part of the results' columns
    warps: int
    blocks: int  # on a multiprocessor at the same time, as far as registers go
    shared: int  # bytes
    held: bool  # forward: rows of q stay in registers


def serves(capability: int) -> bool:
    """Whether these kernels, not Triton's, run on a GPU of this capability."""
    return capability < TRITON


def engine(dtype: str, capability: int) -> str:
    """Which of turing.h, volta.h, single.h multiplies; bfloat16, which these GPUs lack, is computed in float32."""
    if dtype != "f16":
        return "single"
    return "turing" if capability >= 75 else "volta"


def shape(function: str, dtype: str, head_dim: int, value_dim: int, m: int, n: int, capability: int) -> Shape:
    """The largest shape whose rows and columns fit in shared memory; a cut multiplies nothing, and holds numbers."""
    if _is_cut(function):
        warps = 4
        return Shape(m, n, m, 1, warps, 1, 4 * (m + n + 32 * warps), False)
    name = engine(dtype, capability)
    cuts: Any = _CUTS[name]
    cut = next(cut for cut in cuts[function] if max(head_dim, value_dim) <= cut.dim)
    warp_rows = (
        16 if name == "turing" and m <= 32 else cut.warp_rows
    )  # else one warp would load for all alone
    least = 8 if name == "single" else 16
    results = dict(attention_forward=value_dim, attention_query_gradient=head_dim)
    slices = -(-results.get(function, max(head_dim, value_dim)) // cut.width)
    # A divisor of m, of 192 its power of two: 64.
    rows, columns = max(warp_rows, min(m & -m, cut.rows)), min(n, cut.columns)
    if rows == 32 == warp_rows and slices == 1:
        columns = min(columns, 16)
    while (size := _shared(name, function, head_dim, value_dim, rows, columns, slices)) > SHARED[75]:
        if columns > 16:
            columns = 16
        elif rows > warp_rows:
            rows //= 2
        elif columns > least:
            columns //= 2
        else:
            raise ValueError(
                f"head_dim={head_dim}, value_dim={value_dim}: {function} has no room for {size} bytes"
            )
    warps = rows // warp_rows * slices
    return Shape(
        rows, columns, warp_rows, slices, warps, cut.blocks if warps <= 4 else 1, size, head_dim <= 64
    )


def macros(
    function: str, constants: dict[str, Any], dtype: str, capability: int, how: Shape
) -> dict[str, int]:
    """What the source of `function` is compiled with; constants: HEAD_DIM ... WIDE as for the Triton kernels."""
    sizes = dict(ROWS=how.rows, COLUMNS=how.columns, SLICES=how.slices, WARPS=how.warps)
    sizes |= dict(WARP_ROWS=how.warp_rows, BLOCKS=how.blocks, SHARED_BYTES=how.shared, HELD=int(how.held))
    sizes |= {f"DTYPE_{name}": int(dtype == name.lower()) for name in ("F16", "BF16")}
    sizes |= dict(CAPABILITY=capability)
    wanted = (
        "HEAD_DIM",
        "VALUE_DIM",
        "M",
        "N",
        "GRANULE",
        "HEAVIEST_FIRST",
        "PERMUTED",
        "SHARED",
        "WIDE",
    )
    sizes |= {name: int(constants.get(name, 0)) for name in ("JOINED", "SEGMENTS", "ORDERS")}
    sizes |= dict(GROUP=int(constants.get("GROUP", 1)))
    sizes |= dict(SHARES=int(constants["SHARES"])) if _is_cut(function) else {}
    return sizes | {name: int(constants[name]) for name in wanted}


def _is_cut(function: str) -> bool:
    """Whether it cuts the plan's lists by segment numbers, before those that multiply."""
    return function.startswith("attention_cut_")


def _shared(
    name: str, function: str, head_dim: int, value_dim: int, rows: int, columns: int, slices: int
) -> int:
    """Bytes: the rows that pass, their numbers and statistics, and the rows that the block owns."""
    size, unit = (4, 8 * slices) if name == "single" else (2, 16 * slices)
    head, value = (-(-dim // unit) * unit * size + 16 for dim in (head_dim, value_dim))
    own = max(head, value) if function == "attention_forward" else head + value
    return columns * (head + value + 16) + rows * own
