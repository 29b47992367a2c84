"""Fashion-MNIST, grey images of 28 x 28, strided, 11.22M parameters: cifar10's architecture at 24 layers.

Not of the paper. l = 28 is a row of the image, as cifar10's 96 is; blocks of 16 divide the 784 positions. Heads are
interleaved one to one, since a window of 28 pixels alone does not see the pixel above. 57,000 images train, 3,000
validate, and the 10,000 official ones test.
"""

from dataclasses import replace

from .cifar10 import CONFIG as CIFAR10

CONFIG = replace(
    CIFAR10,
    name="fashion",
    data="fashion",
    grid=(28, 28, 1),
    layers=24,
    heads=4,
    layer_modes=("strided", "local"),
    local_attn_ctx=28,
    blocksize=16,
    dropout=0.1,
    learning_rate=1e-3,
    warmup=1000,
    batch=64,
    steps=16_000,
)
