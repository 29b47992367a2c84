"""ImageNet 64x64, strided, 151.65M parameters, 3.44 bits per dim (paper, section 7.3).

The paper gives no learning rate, batch or order of the heads: all three are those of the authors' later 150M
model. 673,284 steps are 70 epochs of 1,231,149.
"""

from ..config import Config

CONFIG = Config(
    name="imagenet64",
    data="imagenet64",
    grid=(64, 64, 3),
    layers=48,
    width=512,
    heads=16,
    layer_modes=("local", "strided", "local", "local"),
    local_attn_ctx=128,
    dropout=0.01,
    learning_rate=1.5e-4,
    batch=128,
    steps=673_284,
    precision="mixed_float16",
)
