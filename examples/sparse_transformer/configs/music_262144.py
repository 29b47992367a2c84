"""Classical music at 12 kHz, 262144 samples, strided, about 25M parameters, 2.17 bits per byte (paper, Table 4).

The paper gives length and size alone: 32 layers of width 256 come to 25.67M, l = sqrt(n), heads interleaved
local first (section 5.1 advises interleaving for extremely long sequences); rate as imagenet64.
"""

from ..config import Config

CONFIG = Config(
    name="music_262144",
    data="audio",
    grid=(512, 512),
    layers=32,
    width=256,
    heads=8,
    layer_modes=("local", "strided"),
    local_attn_ctx=512,
    ff_ratio=4,
    key_ratio=1,
    learning_rate=1.5e-4,
    batch=8,
    precision="mixed_float16",
)
