"""Whole 64x64 images, 12,288 positions, through a network small enough for a CPU."""

from dataclasses import replace

from .imagenet64 import CONFIG as FULL

CONFIG = replace(
    FULL,
    name="imagenet64_small",
    layers=4,
    width=64,
    heads=2,
    dropout=0.0,
    learning_rate=3e-3,
    warmup=20,
    average=0.99,
    batch=1,
    steps=200,
    precision="float32",
    checkpoint_every=100,
)
