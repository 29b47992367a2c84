"""gcide at 7 half-size layers of 256 and 2,048 positions, 3.86M parameters: the model of examples/pretrained/text."""

from dataclasses import replace

from .gcide import CONFIG as FULL

CONFIG = replace(
    FULL,
    name="gcide_pocket",
    grid=(16, 128),
    layers=7,
    width=256,
    heads=4,
    num_verts=4,
    ff_ratio=2,
    dropout=0.0,
    learning_rate=1.5e-3,
    warmup=500,
    batch=32,
    steps=5_000,
)
