"""One run of training in one record; the files in configs/ fill it in."""

from __future__ import annotations

import ast
import importlib
import math
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

SPLITS = ("train", "valid", "test")
KINDS = ("text", "cifar10", "imagenet64", "fashion", "audio")
PRECISIONS = ("float32", "mixed_float16", "mixed_bfloat16")
RECOMPUTE = ("none", "selective", "whole")
IMAGES = {"cifar10": 3, "imagenet64": 3, "fashion": 1}  # channels of a pixel


@dataclass(frozen=True)
class Config:
    """Defaults are the paper's common settings (section 6); widths and patterns have none."""

    name: str
    data: str  # one of KINDS
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
    kv_heads: int | None = None  # heads of keys and values, which several heads then share; as many as heads
    blocksparse: bool = True
    ff_ratio: float = 4.0
    key_ratio: float = 1.0
    recompute: str = "selective"  # what the backward pass computes again; one of RECOMPUTE
    xla: bool = False  # compile the residual blocks: few large kernels for many small ones

    dropout: float = 0.0
    learning_rate: float = 3.5e-4
    warmup: int = 5000
    weight_decay: float = 0.01
    clip: float = 1.0
    # Decay of the weights' moving average, as in the authors' later code; the paper is silent.
    average: float = 0.999
    batch: int = 16  # of all replicas together
    steps: int = 100_000
    precision: str = "float32"  # one of PRECISIONS
    seed: int = 42
    checkpoint_every: int = 500

    @property
    def n_ctx(self) -> int:
        return prod(self.grid)

    @property
    def padded(self) -> int:
        """Positions of the residual stream: n_ctx, and after them rows of the grid, which nothing reads, so that the
        columns that strided sees are whole blocks: fashion's of 28 become 32, in blocks of 16."""
        if self.local_attn_ctx is None or "strided" not in str(self.layer_modes):
            return self.n_ctx
        rows, rest = divmod(self.n_ctx, self.local_attn_ctx)
        return self.n_ctx if rest else -(-rows // self.blocksize) * self.blocksize * self.local_attn_ctx

    @property
    def pattern(self) -> dict:
        names = "heads local_attn_ctx blocksize num_verts vertsize".split()
        return {name: getattr(self, name) for name in names}

    def override(self, assignments: list[str]) -> Config:
        """The config with each `key=value` applied, the value read as the field's type has it."""
        changes = {}
        for assignment in assignments:
            key, equals, text = assignment.partition("=")
            if not equals or key not in TYPES:
                raise ValueError(
                    f"--override {assignment}: wanted key=value with key one of {', '.join(sorted(TYPES))}"
                )
            try:
                changes[key] = _read(key, text)
            except ValueError as error:
                raise ValueError(f"--override {assignment}: {error}") from error
        return replace(self, **changes).checked()

    @classmethod
    def from_fields(cls, content) -> Config:
        """The config with these fields, all of them, as JSON has them. Raises ValueError."""
        if isinstance(content, dict):
            content = {
                "kv_heads": None,
                **content,
            }  # runs from before heads could share keys have no such field
        if not isinstance(content, dict) or content.keys() != TYPES.keys():
            named = set(content) if isinstance(content, dict) else set()
            differing = ", ".join(sorted(map(str, named ^ TYPES.keys()))[:5])
            raise ValueError(f"its fields are not those of a configuration: {differing}")
        recompute = content["recompute"]
        if isinstance(recompute, bool):  # of a run from before there were three settings
            content = {**content, "recompute": "whole" if recompute else "none"}
        return cls(**{key: _typed(key, value) for key, value in content.items()}).checked()

    def changes(self) -> list[str]:
        """KEY=VALUE of all that `override` has to change in the configuration of its name."""
        like, changes = load(self.name), []
        for key in TYPES:
            value = getattr(self, key)
            if value != getattr(like, key):
                one = key == "layer_modes" and len(value) == 1 and isinstance(value[0], str)
                changes.append(f"{key}={value[0] if one else value}")
        return changes

    def checked(self) -> Config:
        """Itself. Raises ValueError for values that mean no model; what a pattern wants is the model's to check."""
        for key, (holds, wanted) in RANGES.items():
            value = getattr(self, key)
            if not all(map(holds, value if key == "grid" else [value])):
                raise ValueError(f"{key}={value!r}: it has to be {wanted}")
        for key, choices in (("data", KINDS), ("precision", PRECISIONS), ("recompute", RECOMPUTE)):
            if getattr(self, key) not in choices:
                raise ValueError(f"{key}={getattr(self, key)!r}: choose one of {', '.join(choices)}")
        if not self.grid or not self.layer_modes:
            raise ValueError("grid and layer_modes may not be empty")
        if channels := IMAGES.get(self.data):
            if self.grid != (self.grid[0], self.grid[0], channels):
                raise ValueError(f"grid={self.grid}: an image's is (side, side, {channels})")
        if self.dropout and self.width % 2:
            raise ValueError(
                f"width={self.width}: it has to be even for dropout, which draws two numbers at once"
            )
        return self


TYPES: dict[str, Any] = get_type_hints(Config)
RANGES = {
    **dict.fromkeys("layers width heads blocksize batch steps".split(), (lambda n: n > 0, "at least 1")),
    **dict.fromkeys(
        "local_attn_ctx num_verts vertsize kv_heads".split(),
        (lambda n: n is None or n > 0, "None or at least 1"),
    ),
    **dict.fromkeys("ff_ratio key_ratio clip".split(), (lambda x: x > 0, "above 0")),
    **dict.fromkeys("learning_rate weight_decay warmup".split(), (lambda x: x >= 0, "at least 0")),
    **dict.fromkeys("dropout average".split(), (lambda x: 0 <= x < 1, "at least 0 and less than 1")),
    "checkpoint_every": (lambda n: n > 0, "at least 1"),
    "grid": (lambda n: n > 0, "of numbers that are at least 1"),
    "seed": (lambda n: 0 <= n < 2**32, "between 0 and 2^32 - 1"),
}
WORDS = {
    int: "a whole number",
    float: "a finite number",
    bool: "True or False",
    str: "a word",
    NoneType: "None",
    TYPES["grid"]: "a tuple of whole numbers, such as (16, 32)",
    TYPES[
        "layer_modes"
    ]: "a tuple of modes, such as ('local', 'strided'), each for a layer or a tuple for its heads",
}


def _read(key: str, text: str):
    """The value that `key=text` means: text itself where the field holds words, else a Python literal."""
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        value = text
    if TYPES[key] is str and not isinstance(value, str):
        value = text
    if key == "layer_modes" and isinstance(value, str):
        value = (value,)  # one mode for every layer
    return _typed(key, value)


def _typed(key: str, value):
    """The value with lists as tuples. Raises ValueError where it is not of the field's type."""
    try:
        return _convert(value, TYPES[key])
    except TypeError:
        kinds = get_args(TYPES[key]) if get_origin(TYPES[key]) is UnionType else (TYPES[key],)
        wanted = " or ".join(WORDS[kind] for kind in kinds)
        raise ValueError(f"{key} is {wanted}, not {str(value)[:100]!r}") from None


def _convert(value, kind):
    if get_origin(kind) is UnionType:
        for choice in get_args(kind):
            try:
                return _convert(value, choice)
            except TypeError:
                continue
    elif get_origin(kind) is tuple:
        if isinstance(value, (list, tuple)):
            return tuple(_convert(each, get_args(kind)[0]) for each in value)
    elif kind is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            return value
    elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise TypeError(value)


def names() -> list[str]:
    files = Path(__file__).with_name("configs").glob("*.py")
    return sorted(path.stem for path in files if path.stem != "__init__")


def load(name: str) -> Config:
    if name not in names():
        raise ValueError(f"there is no configuration {name!r}; choose one of {', '.join(names())}")
    return importlib.import_module(f".configs.{name}", __package__).CONFIG
