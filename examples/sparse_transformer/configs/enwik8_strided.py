"""Table 2's strided Enwik8 model: enwik8 with local and strided merged, 1.13 bits per byte.

The paper does not give this row's stride or its way to combine the heads: l = 128 and merged, as in enwik8.
"""

from dataclasses import replace

from .enwik8 import CONFIG as FIXED

CONFIG = replace(
    FIXED,
    name="enwik8_strided",
    layer_modes=("local+strided",),
)
