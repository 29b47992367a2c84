"""Runs the CPU op on a layout and tiles of the test's choosing, next to the oracle."""

from dataclasses import dataclass, field

import numpy as np
import oracle
import pytest
import tensorflow as tf

from blocksparse.native import loading
from blocksparse.plan import build_blocks, make_plan, pack

library = loading.load_library()
needs_kernels = pytest.mark.skipif(library is None, reason="no C++ compiler")
EPSILON = {"float32": 2**-21, "float16": 2**-10, "bfloat16": 2**-7}
NAMES = ("out", "lse", "dq", "dk", "dv")


@dataclass
class Case:
    """layout: bool [heads, query blocks, key blocks]; mask: bool [query_time, key_time] cut into blocks, or None."""

    layout: np.ndarray
    block_size: int = 16
    mask: np.ndarray | None = None
    order: int = 1
    tiles: tuple[int, int] = (64, 64)
    batch: int = 2
    head_dim: int = 16
    value_dim: int = 16
    dtype: str = "float32"
    scale: float = 0.25
    seed: int = 0
    times: tuple[int, int] | None = None  # rows of q and of k, where those are fewer than the layout's
    changes: dict = field(
        default_factory=dict
    )  # name -> function that changes the array of that input in place

    def __post_init__(self):
        bs = self.block_size

        def callback(blk_shape, head_idx, qry_idx, key_idx, blk_idx):
            return self.mask[qry_idx * bs : (qry_idx + 1) * bs, key_idx * bs : (key_idx + 1) * bs]

        self.heads, query_blocks, key_blocks = self.layout.shape
        callback = None if self.mask is None else callback
        self.visible = oracle.dense_mask(self.layout, bs, callback, order=self.order)
        blocks = build_blocks(self.layout, bs, callback)
        self.plan = pack(make_plan(blocks, self.order, self.heads, self.tiles, self.tiles))
        random = np.random.default_rng(self.seed)
        query_time, key_time = self.times or (query_blocks * bs, key_blocks * bs)
        self.visible = self.visible[:, :query_time, :key_time]
        shapes = {
            "q": (query_time, self.head_dim),
            "k": (key_time, self.head_dim),
            "v": (key_time, self.value_dim),
            "dout": (query_time, self.value_dim),
        }
        self.inputs = {}
        for name, (time, width) in shapes.items():
            array = random.standard_normal((self.batch, time, self.heads * width))
            array = tf.cast(array, self.dtype).numpy().astype(np.float64)  # what the kernel will read
            self.changes.get(name, lambda array: None)(array)
            self.inputs[name] = array
        self.inputs["dlse"] = random.standard_normal((self.batch, self.heads, query_time)).astype(np.float32)

    def run(self):
        """(out, lse, dq, dk, dv) of the kernel, as float64 arrays."""
        q, k, v, dout = (tf.cast(self.inputs[name], self.dtype) for name in ("q", "k", "v", "dout"))
        plan, attributes = tf.constant(self.plan), dict(segments=[], heads=self.heads, scale=self.scale)
        out, lse = library.blocksparse_attention(q, k, v, plan, **attributes)
        gradients = library.blocksparse_attention_grad(
            q, k, v, out, lse, dout, self.inputs["dlse"], plan, **attributes
        )
        return [tf.cast(x, tf.float64).numpy() for x in (out, lse, *gradients)]

    def truth(self):
        """What the oracle says."""
        return oracle.attention(*(self.inputs[n] for n in "qkv"), self.visible, self.scale, *self._incoming())

    def check(self, slack=8):
        """The kernel agrees with the oracle."""
        for name, got, want in zip(NAMES, self.run(), self.truth(), strict=True):
            oracle.assert_close(name, got, want, EPSILON["float32" if name == "lse" else self.dtype], slack)

    def _incoming(self):
        return self.inputs["dout"], self.inputs["dlse"]


def causal(time):
    """bool [time, time]: key <= query."""
    return np.tri(time, dtype=bool)
