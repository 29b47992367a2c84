"""A byte-level model that two CPU cores train in two minutes: long enough for pairs of bytes, too short for words.

It ends near 3.65 bits per byte: as the paper starts them, embeddings are a hundredth of the stream after 30 steps, and
the tokens come back into it slowly (benchmarks/LOG.md, section 19). ../../enwik8.py, with embeddings of deviation 0.5
and four bytes to a position, ends under 2.6 in as long.
"""

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
