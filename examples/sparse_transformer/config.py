"""One run of training in one record; the files in configs/ fill it in."""

from __future__ import annotations

import ast
import importlib
from dataclasses import dataclass, fields, replace
from math import prod
from pathlib import Path

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Config:
    """Defaults are the paper's common settings (section 6); widths and patterns have none."""

    name: str
    data: str  # text, cifar10, imagenet64 or audio
    grid: tuple[int, ...]  # positions: (rows, columns, channels) of an image, (rows, stride) of anything else
    layers: int
    width: int
    heads: int
    # One mode per layer, cycled: ("local", "strided") is interleaved heads, ("local+strided",) merged ones and
    # (("local", "strided"),) one mode per head (section 5.1).
    layer_modes: tuple[str | tuple[str, ...], ...]
    local_attn_ctx: int | None = None
    blocksize: int = 32
    num_verts: int | None = None
    vertsize: int | None = None
    blocksparse: bool = True
    ff_ratio: float = 4.0
    key_ratio: float = 1.0
    recompute: bool = True
    xla: bool = False  # compile the residual blocks: few large kernels for many small ones

    dropout: float = 0.0
    learning_rate: float = 3.5e-4
    warmup: int = 5000
    weight_decay: float = 0.01
    clip: float = 1.0
    average: float = (
        0.999  # decay of the weights' moving average, as in the authors' later code; the paper is silent
    )
    batch: int = 16  # of all replicas together
    steps: int = 100_000
    precision: str = "float32"  # or mixed_float16, mixed_bfloat16
    seed: int = 42
    checkpoint_every: int = 500

    @property
    def n_ctx(self) -> int:
        return prod(self.grid)

    @property
    def pattern(self) -> dict:
        names = "heads local_attn_ctx blocksize num_verts vertsize".split()
        return {name: getattr(self, name) for name in names}

    def override(self, assignments: list[str]) -> Config:
        """Returns the config with each `key=value` applied; the value is a Python literal, else a string."""
        known = {f.name for f in fields(self)}
        changes = {}
        for assignment in assignments:
            key, equals, value = assignment.partition("=")
            if not equals or key not in known:
                raise ValueError(
                    f"--override {assignment}: wanted key=value with key one of {', '.join(sorted(known))}"
                )
            try:
                changes[key] = ast.literal_eval(value)
            except (SyntaxError, ValueError):
                changes[key] = value
        return replace(self, **changes)


def names() -> list[str]:
    files = Path(__file__).with_name("configs").glob("*.py")
    return sorted(path.stem for path in files if path.stem != "__init__")


def load(name: str) -> Config:
    if name not in names():
        raise ValueError(f"there is no configuration {name!r}; choose one of {', '.join(names())}")
    return importlib.import_module(f".configs.{name}", __package__).CONFIG
