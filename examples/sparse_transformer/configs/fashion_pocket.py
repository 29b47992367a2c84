"""fashion at 8 layers, 3.84M parameters: the model of examples/pretrained/image, 7.7 MB in float16."""

from dataclasses import replace

from .fashion import CONFIG as FULL

CONFIG = replace(
    FULL,
    name="fashion_pocket",
    layers=8,
    dropout=0.0,
    learning_rate=1.5e-3,
    warmup=500,
    steps=6_000,
)
