"""Whole 32x32 images through a network small enough for a CPU."""

from dataclasses import replace

from .cifar10 import CONFIG as FULL

CONFIG = replace(
    FULL,
    name="cifar10_small",
    layers=4,
    width=64,
    xla=False,
    dropout=0.0,
    learning_rate=3e-3,
    warmup=20,
    average=0.99,
    batch=2,
    steps=200,
    precision="float32",
    checkpoint_every=100,
)
