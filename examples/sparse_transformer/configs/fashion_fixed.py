"""fashion with the fixed pattern: l = 28, a row of the image, and c = 8, merged, the same columns for all heads.

As the paper's Figure 3 draws it: what is left of the rows above are the pixels at their right. With l = 112, c = 16 and
four sub-blocks, one for each head, the heads together see 63% of the earlier pixels, and no difference to dense was
found (docs/results.md).
"""

from dataclasses import replace

from .fashion import CONFIG as STRIDED

CONFIG = replace(
    STRIDED,
    name="fashion_fixed",
    layer_modes=("fixed",),
    blocksize=8,
    num_verts=1,
    vertsize=1,
)
