"""From a layout and its masks to the tile plan that every kernel follows (NumPy and SciPy only).

patterns.py, modes.py   who sees whom: predicates of (query, key), and the names that `attn_mode` knows
lengths.py              plans of whole blocks for contexts of any length
block_table.py          a pattern's active blocks and masks, without looking at each
blocks.py               a layout and a mask callback, read: lists of blocks and their distinct masks
tiling.py, plan.py      lists of blocks -> row tiles and column tiles
blob.py                 the plan as one vector of int32, which is what kernels read
pictures.py             who sees whom, drawn (matplotlib, imported when called)
rectangles.py           lists of blocks -> rectangles, for the plain TensorFlow path
checks.py               what several callers refuse, worded once
"""

from .blob import pack, unpack
from .blocks import Blocks, HeadBlocks, build_blocks
from .plan import Plan, make_plan
from .tiling import TilePlan, scatter

__all__ = [
    "Blocks",
    "HeadBlocks",
    "Plan",
    "TilePlan",
    "build_blocks",
    "make_plan",
    "pack",
    "scatter",
    "unpack",
]
