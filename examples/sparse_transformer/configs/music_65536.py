"""Classical music at 12 kHz, 65536 samples, strided, about 152M parameters, 1.97 bits per byte (paper, Table 4).

The paper gives length and size alone: a 48-layer model of imagenet64's widths come to 151.84M, l = sqrt(n),
heads interleaved local first (section 5.1 advises interleaving for extremely long sequences); rate as
imagenet64.
"""

from ..config import Config

CONFIG = Config(
    name="music_65536",
    data="audio",
    grid=(256, 256),
    layers=48,
    width=512,
    heads=16,
    layer_modes=("local", "strided"),
    local_attn_ctx=256,
    ff_ratio=4,
    key_ratio=1,
    learning_rate=1.5e-4,
    batch=8,
    precision="mixed_float16",
)
