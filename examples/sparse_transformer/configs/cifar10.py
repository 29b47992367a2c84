"""CIFAR-10, strided, 59.20M parameters, 2.80 bits per dim (paper, section 7.1).

The paper gives neither stride nor order of the heads: 96 (a row of 32 pixels) and one strided layer before
three local ones are the authors' later code, as is the batch of 16. 360,000 steps are 120 epochs of 48,000.
"""

from ..config import Config

CONFIG = Config(
    name="cifar10",
    data="cifar10",
    grid=(32, 32, 3),
    layers=128,
    width=256,
    heads=2,
    layer_modes=("strided", "local", "local", "local"),
    local_attn_ctx=96,
    ff_ratio=2,
    key_ratio=0.5,
    xla=True,
    dropout=0.25,
    learning_rate=3.5e-4,
    batch=16,
    steps=360_000,
    precision="mixed_float16",
)
