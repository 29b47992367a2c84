"""Table 2's fixed CIFAR-10 model: cifar10 with the fixed pattern, 2.85 bits per dim.

The paper gives neither l nor c of this row: l = 96 as in cifar10, c = 32, merged, a sub-block of its own for
each head as section 4.3 advises.
"""

from dataclasses import replace

from .cifar10 import CONFIG as STRIDED

CONFIG = replace(
    STRIDED,
    name="cifar10_fixed",
    layer_modes=("fixed",),
    num_verts=2,
    vertsize=1,
)
