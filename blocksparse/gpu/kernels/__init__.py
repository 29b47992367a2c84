"""The Triton kernels, for processes without TensorFlow. All but roles/ also run in Triton's interpreter.

A kernel works through one side of the tile plan. Each program owns one row tile of one head and batch row, M rows whose
results it alone writes, and visits that tile's column tiles, N rows each of the other tensors, gathered by number. Rows
are queries and columns keys in all kernels but attention_key_gradient, where it is the other way round.

Tensors, T being float16, bfloat16 or float32:

    q, dq            T [batch, query_time, heads * head_dim]
    k, dk            T [batch, key_time, heads / GROUP * head_dim]
    v, dv            T [batch, key_time, heads / GROUP * value_dim]
    out, dout        T [batch, query_time, heads * value_dim]
    lse, dlse        float32 [batch, heads, query_time]   the natural log-sum-exp of each query's scores; its gradient
    delta            float32 [batch, heads, query_time]   rowsum(out dout) - dlse, from the query pass to the key pass

plan: the arrays of the side whose rows are owned, int32, contiguous; blocksparse/plan/tiling.py has them in full:

    head_index       [heads]                the distinct head that a head is like
    residues         [heads]                s: plan row r is tensor row (r % (time / s)) * s + r // (time / s)
    head_tiles       [distinct + 1]         where a distinct head's row tiles start
    rows             [row tiles, M / g]     granules of g rows that a row tile holds
    row_count        [row tiles]            rows to be stored
    offset           [row tiles + 1]        where a row tile's column tiles start
    full             [row tiles]            how many of these, the first ones, are seen whole and need no mask
    columns          [column tiles, N / g]  granules that a column tile gathers
    mask             [column tiles]         its row of masks; 0 where it needs none
    masks            [masks, M, N / 32]     bit c % 32 of word [r, c / 32]: row r sees column c (N < 32: one word)

scale and scale_log2: float32, the factor of the scores, and that times log2(e). sizes, all int32:

    heads, query_time, key_time      heads: of the rows that are owned, queries' or keys'
    query_rows, key_rows   (BOUNDED alone) the plan's: granules and residue classes are of so many rows
    tiles            most row tiles that a head has; heads with fewer have programs that end at once
    count            (warp roles, apart from sizes) tiles * heads * batch: row tiles in all

flags, fixed at compile time. From the key, which describes the call (../key.py):

    QK               DIM, PAD, WIDE of rows of q and k: head_dim; the power of two from 16 on that holds it; whether a
                     tensor has 2^31 elements or more and needs 64-bit offsets
    VO               the same of rows of v and out, with value_dim
    M, N, GRANULE    rows of a program, 16 to 128, columns of the plan's tiles, 16 to 128, and g, which divides both
    PARTS            M times so many are the plan's row tile: 1, but 3 of 64 rows where that is 192, since shapes are
                     powers of two. A program is then a part of a row tile; with warp roles M is 192, PARTS 1
    PERMUTED         some head's residues are not 1; else `residues` is not read
    SHARED           all heads have one plan: head_index and head_tiles are not read
    JOINED           the results hold those of passes over other keys, and get those over the keys of all: out and lse
                     the softmax over both; dq, dk and dv the sum, which is the gradient when out, lse, dout and dlse
                     are those of all passes. A row's results are read and written by the program that owns it
    GROUP            so many query heads read one key head: head h reads h // GROUP. Column tiles of queries then gather
                     from all of a key head's readers: granule number c is granule c % n of reader c // n, n being
                     query_time / g
    SEGMENTS         positions have segment numbers: offset, columns, mask and masks are what cut.py has left for each
                     batch row, and `full` is not read
    ORDERS           (with SEGMENTS) heads lie in different orders, so that each has cut lists of its own
    BOUNDED          tensors have fewer rows than the plan: rows past their end are read as zeros and not stored
    KEEP             (cut.py) no column tile is left out
    SHARES, AT_ONCE  (cut.py) programs a row tile; column tiles that one looks at at a time
    SINGLE           (closed kernels) every row tile has just one column tile, of its own number: no loop, no offset
    PRECISION        (plain kernels) of float32 products: "ieee", exact, or "tf32", operands rounded to 10 bits

From the tuned tables, which say how fast it runs (../tuning.py):

    HEAVIEST_FIRST   the order of programs: see primitives.locate
    SPLIT            (plain kernels that are not closed) column tiles without a mask run in a loop of their own, without
                     mask arithmetic: for long rows (benchmarks/LOG.md, section 1)
    COLUMNS          (warp roles) columns computed at a time; divides N
    STAGES           (warp roles) column tiles in the ring; where one's products run under the next one's exponentials 3
                     or more, or a program waits for itself
    REGISTERS        (warp roles) registers a thread at launch, before the warpgroups share them out
    TURNS            (warp roles) row tiles whose own rows there is room for: 1 where a program takes one row tile, 2
                     where it takes one after the other
    HEADS_IN_TURN    (warp roles) a head's row tiles one after the other, before the next head's
"""

import re

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from . import steps
from .arguments import grouped, source_parts
from .backward import attention_key_gradient, attention_query_gradient
from .closed import attention_closed_forward, attention_whole_gradient
from .cut import attention_cut_keys, attention_cut_queries
from .forward import attention_forward

__all__ = [
    "attention_closed_forward",
    "attention_cut_keys",
    "attention_cut_queries",
    "attention_forward",
    "attention_key_gradient",
    "attention_query_gradient",
    "attention_whole_gradient",
    "compiled",
    "grouped",
    "warps",
]


def compiled(launch, capability: int):
    """A launch of the manifest, as Triton compiles it for a GPU of this capability."""
    return triton.compile(_source(launch), target=GPUTarget("cuda", capability, 32), options=launch.options)


def warps(kernel) -> int:
    """Of a program of a compiled kernel, those with roles of their own included."""
    return int(re.search(r"\.reqntid\s+(\d+)", kernel.asm["ptx"]).group(1)) // 32


def _source(launch):
    if launch.function in steps.__all__:
        return steps.source(launch)
    if launch.function in __all__:
        function = globals()[launch.function]
        return ASTSource(function, *source_parts(function.arg_names, launch))
    from triton.experimental.gluon import GluonASTSource  # not in every Triton that compiles the others

    from . import roles

    function = getattr(roles, launch.function)
    return GluonASTSource(function, *source_parts(function.arg_names, launch))
