"""Table 2's fixed CIFAR-10 model: cifar10 with the fixed pattern, 2.85 bits per dim.

The paper gives neither l nor c of this row: l = 96 as in cifar10, c = 16, which lies between its l / 16 and l / 4,
merged, the same columns for both heads as in its Figure 3 (fashion_fixed says why).
"""

from dataclasses import replace

from .cifar10 import CONFIG as STRIDED

CONFIG = replace(
    STRIDED,
    name="cifar10_fixed",
    layer_modes=("fixed",),
    blocksize=16,
    num_verts=1,
    vertsize=1,
)
