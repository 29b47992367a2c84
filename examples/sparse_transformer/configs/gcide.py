"""GCIDE, a dictionary of English with its markup, fixed, 21.55M parameters: enwik8's architecture in small.

Not of the paper. l, c and heads of 64 are enwik8's, the context is a third of it, and six heads share three
sub-blocks. Its data comes from examples/fetch.py; 90% train, 5% validate and 5% test.
"""

from dataclasses import replace

from .enwik8 import CONFIG as ENWIK8

CONFIG = replace(
    ENWIK8,
    name="gcide",
    grid=(32, 128),
    layers=12,
    width=384,
    heads=6,
    num_verts=3,
    dropout=0.1,
    learning_rate=1e-3,
    warmup=1000,
    batch=16,
    steps=6_000,
)
