"""Random attentions, each against the float64 oracle in one of the ways that it can run.

Attention n is decided by the number n alone: pattern, sizes, key heads, segments, lengths, dtype, and how it runs.

    python tests/attention/random_attentions.py 10000 [first]
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(1, str(Path(__file__).resolve().parents[1]))
import numpy as np
import oracle
import tensorflow as tf
from layouts import SEGMENTS, segments

from blocksparse.plan.modes import MODES
from sparse_attention import attention_impl, blocksparse_attention_impl, get_attn_mask

HEADS, BATCH = 4, 2
WAYS = {"eager": 55, "reference": 14, "dense": 14, "function": 8, "unknown": 5, "xla": 2, "graph": 2}
# Rounding units that a result may be off: a float32 dq of one key alone is nothing but rounding.
UNITS = {"float32": 64 * 2**-23, "float16": 8 * 2**-11, "bfloat16": 8 * 2**-8}


class Attention:
    """Attention number n. pattern, sharing: arguments of attention_impl after heads; ids, lengths among the latter."""

    def __init__(self, number: int):
        self.number, draw = number, np.random.default_rng(number)
        self.way = str(draw.choice(list(WAYS), p=np.array(list(WAYS.values())) / 100))
        self.dtype = str(draw.choice(list(UNITS), p=[0.7, 0.15, 0.15]))
        self.time, self.dim = int(draw.integers(1, 151)), int(draw.choice([8, 16, 24]))
        self.pattern = _pattern(draw)
        self.kv_heads = int(draw.choice([1, 2, 4]))
        self.sharing: dict = dict(kv_heads=self.kv_heads)
        self.meeting = np.ones((BATCH, 1, self.time, self.time), bool)
        if draw.random() < 0.6:
            kinds = [kind for kind in SEGMENTS if self.time > 1 or kind != "padded"]
            kind = str(draw.choice(kinds))
            (query, key), _ = segments(draw, kind, BATCH, self.time, self.time)
            self.sharing["segment_ids"] = (query, key) if draw.random() < 0.3 else query
            key = key if isinstance(self.sharing["segment_ids"], tuple) else query
            equal = query[:, None, :, None] == key[:, None, None, :]
            self.meeting &= equal & (query >= 0)[:, None, :, None]
        if draw.random() < 0.2:
            lengths = draw.integers(0, self.time + 1, BATCH).astype(np.int32)
            there = np.arange(self.time) < lengths[:, None]
            self.sharing["lengths"] = lengths
            self.meeting &= there[:, None, :, None] & there[:, None, None, :]
        widths = np.array([HEADS, self.kv_heads, self.kv_heads, HEADS]) * self.dim
        self.inputs = [
            tf.cast(draw.standard_normal((BATCH, self.time, width)), self.dtype) for width in widths
        ]

    def __str__(self) -> str:
        sharing = {
            name: np.shape(value) if name != "kv_heads" else value for name, value in self.sharing.items()
        }
        return (
            f"{self.number} {self.way} {self.dtype} time={self.time} dim={self.dim} {self.pattern} {sharing}"
        )

    def wanted(self) -> list:
        masks = get_attn_mask(self.time, **self.pattern)[0].numpy() > 0
        visible = masks[np.arange(HEADS) % len(masks)] & self.meeting
        q, k, v, dout = (tf.cast(x, tf.float64).numpy() for x in self.inputs)
        out, _, *gradients = oracle.attention(q, k, v, visible, self.dim**-0.5, dout)
        return [out, *gradients]

    def found(self) -> list:
        attend = attention_impl if self.way == "dense" else blocksparse_attention_impl

        def run(q, k, v, dout):
            with tf.GradientTape() as tape:
                tape.watch([q, k, v])
                out = attend(q, k, v, HEADS, **self.pattern, **self.sharing)
            return [out, *tape.gradient(out, [q, k, v], dout)]

        if self.way == "graph":
            return self._in_a_session(attend)
        if self.way == "unknown":
            self.sharing["max_time"] = 150
            spec = [tf.TensorSpec([None, None, x.shape[2]], x.dtype) for x in self.inputs]
            return tf.function(run, input_signature=spec)(*self.inputs)
        if self.way in ("function", "xla"):
            return tf.function(run, jit_compile=self.way == "xla")(*self.inputs)
        with _kernels("reference" if self.way == "reference" else "auto"):
            return run(*self.inputs)

    def _in_a_session(self, attend) -> list:
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            q, k, v, dout = (tf.compat.v1.placeholder(x.dtype, x.shape) for x in self.inputs)
            out = attend(q, k, v, HEADS, **self.pattern, **self.sharing)
            results = [out, *tf.gradients(out, [q, k, v], dout)]
            given = {node: x.numpy() for node, x in zip((q, k, v, dout), self.inputs, strict=True)}
            return session.run(results, given)


def _pattern(draw: np.random.Generator) -> dict:
    """attn_mode and what it needs: one or two modes a head, for all heads or for each of up to three in turn."""

    def of_a_head():
        return "+".join(draw.choice(MODES, draw.integers(1, 3), replace=False))

    mode = of_a_head() if draw.random() < 0.5 else tuple(of_a_head() for _ in range(draw.integers(1, 4)))
    length, blocksize, columns = (
        int(draw.integers(1, 61)),
        int(draw.choice([8, 16, 32])),
        int(draw.integers(1, 4)),
    )
    pattern = dict(
        attn_mode=mode, local_attn_ctx=length, blocksize=blocksize, causal=bool(draw.random() < 0.7)
    )
    if "summary" in str(mode) or "fixed" in str(mode):
        pattern["local_attn_ctx"] = length + blocksize * columns
        pattern |= dict(vertsize=columns, num_verts=int(draw.integers(1, 2 + length // blocksize // columns)))
    return pattern


@contextmanager
def _kernels(name: str):
    before = os.environ.get("BLOCKSPARSE_KERNELS")
    os.environ["BLOCKSPARSE_KERNELS"] = name
    try:
        yield
    finally:
        del os.environ["BLOCKSPARSE_KERNELS"]
        if before is not None:
            os.environ["BLOCKSPARSE_KERNELS"] = before


def check(number: int) -> str:
    """How attention `number` ran. Raises AssertionError where it is off by more than its rounding."""
    one = Attention(number)
    found = [tf.cast(x, tf.float64).numpy() for x in one.found()]
    for name, got, want in zip(("out", "dq", "dk", "dv"), found, one.wanted(), strict=True):
        error = np.abs(got - want).max(initial=0) / max(1, np.abs(want).max(initial=0))
        assert got.shape == want.shape and error < UNITS[one.dtype], f"{one}: {name} is off by {error:.1e}"
    return one.way


def main(count: int, first: int = 0) -> int:
    """Checks attentions first, first + 1, ...; prints how many ran in each way, and returns how many were wrong."""
    tf.get_logger().setLevel("ERROR")
    outcomes, wrong = Counter(), 0
    for number in range(first, first + count):
        try:
            outcomes[check(number)] += 1
        except Exception as error:
            wrong += 1
            print(f"{Attention(number)}: {type(error).__name__}: {str(error)[:400]}", flush=True)
        if number % 50 == 49:
            tf.keras.backend.clear_session()
            print(number + 1 - first, "checked,", wrong, "wrong", flush=True)
    ways = ", ".join(f"{outcomes[way]} {way}" for way in WAYS)
    print(f"{count} attentions: {ways}, {wrong} wrong")
    return wrong


if __name__ == "__main__":
    raise SystemExit(bool(main(*map(int, sys.argv[1:]))))
