"""Classical music at 12 kHz, 1048576 samples, strided, about 3M parameters, 2.99 bits per byte (paper, Table 4).

The paper gives length and size alone: 24 layers of width 128 with half-size queries, keys and feed-forward
come to 3.11M, l = sqrt(n), heads interleaved local first (section 5.1 advises interleaving for extremely long
sequences); rate as imagenet64.
"""

from ..config import Config

CONFIG = Config(
    name="music_1048576",
    data="audio",
    grid=(1024, 1024),
    layers=24,
    width=128,
    heads=4,
    layer_modes=("local", "strided"),
    local_attn_ctx=1024,
    ff_ratio=2,
    key_ratio=0.5,
    learning_rate=1.5e-4,
    batch=8,
    precision="mixed_float16",
)
