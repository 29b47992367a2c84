"""A third of a second of audio, 4,096 samples, through a network small enough for a CPU."""

from dataclasses import replace

from .music_65536 import CONFIG as FULL

CONFIG = replace(
    FULL,
    name="music_small",
    grid=(64, 64),
    layers=4,
    width=64,
    heads=2,
    local_attn_ctx=64,
    learning_rate=3e-3,
    warmup=20,
    average=0.99,
    batch=2,
    steps=200,
    precision="float32",
    checkpoint_every=100,
)
