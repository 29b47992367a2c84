"""A byte-level model that two CPU cores train in two minutes: long enough for pairs of bytes, too short for words."""

from ..config import Config

CONFIG = Config(
    name="enwik8_small",
    data="text",
    grid=(16, 32),
    layers=4,
    width=128,
    heads=4,
    layer_modes=("fixed",),
    local_attn_ctx=32,
    blocksize=8,
    num_verts=4,
    vertsize=1,
    learning_rate=1e-3,
    warmup=100,
    average=0.99,
    batch=4,
    steps=800,
    recompute="none",
    checkpoint_every=200,
)
