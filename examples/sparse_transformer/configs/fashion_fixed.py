"""fashion with the fixed pattern: l = 112, four rows of the image, and c = 16, merged, a sub-block for each head.

A summary of 16 positions, a block, out of 28 would be most of them: the paper's c is l / 4 to l / 16.
"""

from dataclasses import replace

from .fashion import CONFIG as STRIDED

CONFIG = replace(
    STRIDED,
    name="fashion_fixed",
    layer_modes=("fixed",),
    local_attn_ctx=112,
    num_verts=4,
    vertsize=1,
)
