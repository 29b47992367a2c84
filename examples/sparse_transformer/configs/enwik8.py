"""Enwik8, fixed, 94.95M parameters, 0.99 bits per byte (paper, section 7.2).

l = 128, c = 32, merged heads and the epochs (80 of 7,324 windows) are the paper's; four sub-blocks cycled
over the heads follow its advice in section 4.3 and the README of the authors' code; learning rate and batch
are not given for this experiment: cifar10's rate, and one window for each of its 8 GPUs.
"""

from ..config import Config

CONFIG = Config(
    name="enwik8",
    data="text",
    grid=(96, 128),
    layers=30,
    width=512,
    heads=8,
    layer_modes=("fixed",),
    local_attn_ctx=128,
    num_verts=4,
    vertsize=1,
    xla=True,
    dropout=0.4,
    learning_rate=3.5e-4,
    batch=8,
    steps=73_240,
    precision="mixed_float16",
)
