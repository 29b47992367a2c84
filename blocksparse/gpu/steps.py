"""A decoding step of a residual transformer on a GPU: what decides its machine code, in one word, and its launches.

    step-<dtype>-b<batch>-w<width>-h<heads>-k<key>-v<value>-f<hidden>-n<count>-r<0|1>-c<0|1>-e<0|1>
        [-g<members>.<slots>.<words>.<places>]...-sm<capability>

The names are those of kernels/steps, where each argument is described; r: rows are at positions of their own, c: draws
are cut by top_k or top_p, e: kernels start early (kernels/steps/dependent.py). Imports neither Triton nor TensorFlow.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from .manifest import ELEMENT, Launch

PROGRAMS = (
    128  # so many at least, where the work can be cut: about one for each multiprocessor of a large GPU
)
_HELD = 8192  # weights that a program holds in registers before it waits for its row
_DEEPEST = 8192  # a row that one program reads whole
_TEXT = re.compile(
    r"step-(?P<dtype>f16|bf16|f32)-b(?P<batch>\d+)-w(?P<width>\d+)-h(?P<heads>\d+)-k(?P<key>\d+)-v(?P<value>\d+)"
    r"-f(?P<hidden>\d+)-n(?P<count>\d+)-r(?P<ragged>[01])-c(?P<cut>[01])-e(?P<early>[01])(?P<groups>(?:-g\d+\.\d+\.\d+\.\d+)+)-sm(?P<capability>\d+)"
)


@dataclass(frozen=True)
class Group:
    """Heads that share a cache: how many, its slots, words of 32 slots that a query may see, slots that take a key."""

    members: int
    slots: int
    words: int
    places: int


@dataclass(frozen=True)
class StepKey:
    """What decides the machine code of a step; key and value are of one head."""

    dtype: str  # of weights and caches: f16 | bf16 | f32
    batch: int
    width: int
    heads: int
    key: int
    value: int
    hidden: int
    count: int
    ragged: bool
    cut: bool
    groups: tuple[Group, ...]
    capability: int

    def __str__(self) -> str:
        groups = "".join(f"-g{g.members}.{g.slots}.{g.words}.{g.places}" for g in self.groups)
        sizes = f"b{self.batch}-w{self.width}-h{self.heads}-k{self.key}-v{self.value}-f{self.hidden}-n{self.count}"
        return f"step-{self.dtype}-{sizes}-r{self.ragged:d}-c{self.cut:d}-e{self.early:d}{groups}-sm{self.capability}"

    @property
    def early(self) -> bool:
        """One row's kernels wait longer than they run. Those of many rows fill the GPU: where some wait, others have
        less room (benchmarks/LOG.md, section 20).
        """
        return self.batch == 1

    @property
    def parts(self) -> int:
        """Programs that share the keys of a head: one a tile, up to as many as fill the GPU twice."""
        tiles = max(-(-group.words * 32 // self.tile) for group in self.groups)
        return min(tiles, -(-2 * PROGRAMS // self._pairs)) if self._pairs < PROGRAMS else 1

    @property
    def tile(self) -> int:
        """Slots that a program of attention reads at a time: in registers, before it waits for the new query."""
        numbers = 4096 if self.dtype == "f32" else 8192
        return max(16, min(128, numbers // _power(max(self.key, self.value))))

    @property
    def _pairs(self) -> int:
        return self.batch * min(group.members for group in self.groups)


def parse(text: str) -> StepKey:
    """The inverse of str(StepKey). Raises ValueError naming a key that is none."""
    found = _TEXT.fullmatch(text)
    if not found:
        raise ValueError(
            f"key={text!r} names no step; wanted e.g. "
            "step-f16-b1-w512-h8-k64-v64-f2048-n256-r0-c0-e1-g8.3201.100.2-sm90"
        )
    groups = [Group(*map(int, group.split("."))) for group in found["groups"].split("-g")[1:]]
    numbers = "batch width heads key value hidden count capability".split()
    given = dict[str, Any](
        dtype=found["dtype"], groups=tuple(groups), **{name: int(found[name]) for name in numbers}
    )
    key = StepKey(ragged=found["ragged"] == "1", cut=found["cut"] == "1", **given)
    if str(key) != text:
        raise ValueError(
            f"key={text!r} says that its kernels start early, or not, against what steps.py does"
        )
    return key


def reason_against(key: StepKey) -> str | None:
    """Why these kernels do not serve a step, as a sentence; None where they do."""
    if key.capability < 80:
        return f"compute capability {key.capability / 10} is below 8.0"
    if max(key.width, key.hidden, key.heads * key.value) > _DEEPEST:
        return f"a row of more than {_DEEPEST} numbers"
    if key.count > 1024:
        return f"{key.count} tokens to choose from; 1,024 at most"
    if max(key.key, key.value) > 256:
        return "heads wider than 256"
    return None


def launches(key: StepKey | str) -> list[Launch]:
    """The kernels: attention0, attention1, ... of the groups, the four maps of a block, logits and draw."""
    key = parse(key) if isinstance(key, str) else key
    width, attended = key.width, key.heads * key.value
    inside = key.heads * (2 * key.key + key.value)
    return [
        *(_attention(key, number) for number in range(len(key.groups))),
        _map(key, "qkv", "x", "qkv", width, inside, NORM=True),
        _map(key, "project", "parts", "x", attended, width, PARTS=key.parts, ADD=True),
        _map(key, "expand", "x", "hidden", width, key.hidden, NORM=True, GELU=True),
        _map(key, "contract", "hidden", "x", key.hidden, width, ADD=True),
        _map(key, "logits", "x", "logits", width, key.count, NORM=True, BIAS=False),
        _draw(key),
    ]


def temps(key: StepKey | str) -> list[tuple[str, str]]:
    """(name, bytes) of the device memory that a call needs beside the arguments."""
    key = parse(key) if isinstance(key, str) else key
    size = dict(f16=2, bf16=2, f32=4)[key.dtype]
    numbers = dict(
        x=size * key.width,
        qkv=size * key.heads * (2 * key.key + key.value),
        hidden=size * key.hidden,
        parts=4 * key.heads * key.parts * key.value,
        sums=4 * key.heads * key.parts * 2,
        logits=4 * key.count,
        done=4,
    )
    return [(name, str(key.batch * number)) for name, number in numbers.items()]


def _map(key: StepKey, name: str, given: str, out: str, depth: int, columns: int, **how) -> Launch:
    flags = dict(PARTS=0, NORM=False, BIAS=True, GELU=False, ADD=False) | how
    cut, options = _cut(key, depth, columns, joins=flags["PARTS"] > 1)
    types = dict(x="fp32" if given == "parts" else None, sums="fp32", norm="fp32")
    types |= dict(out="fp32" if out == "logits" else None)
    pointers = dict(x=given, sums="sums", norm="norm", weight="weight", bias="bias", out=out)
    constants = dict[str, Any](BATCH=key.batch, IN=depth, OUT=columns, VALUE=key.value) | flags | cut
    constants |= dict(PRECISION="ieee")
    grid = -(-columns // cut["COLUMNS"]), -(-key.batch // cut["ROWS"])
    return _launch(key, "step_map", name, pointers, types, constants, options, grid)


def _cut(key: StepKey, depth: int, columns: int, joins: bool) -> tuple[dict[str, int], dict[str, int]]:
    """Tile and warps of a product: of vectors for one row, of matrix units for more.

    joins: each program reads all parts of attention's sums, so that half as many of twice the warps are faster, where
    a row has a number for each thread.
    """
    if key.batch == 1:
        deep = _power(depth)
        more = 2 if joins and deep >= 256 else 1
        wide = max(1, min(_HELD // deep, more * _power(columns // PROGRAMS + 1) // 2))
        return dict(ROWS=1, COLUMNS=wide, DEPTH=deep), dict(num_warps=4 * more, num_stages=1)
    rows = min(32, max(16, _power(key.batch)))
    deep = 32 if key.dtype == "f32" else 128
    wide = 32 if columns >= 8 * PROGRAMS else 16
    return dict(ROWS=rows, COLUMNS=wide, DEPTH=deep), dict(num_warps=4, num_stages=3)


def _attention(key: StepKey, number: int) -> Launch:
    group = key.groups[number]
    pointers = "qkv cache done members words begins places ends parts sums".split()
    types = dict.fromkeys("done members words begins places ends".split(), "i32") | dict(
        parts="fp32", sums="fp32"
    )
    constants = dict[str, Any](BATCH=key.batch, HEADS=key.heads, KEY=key.key, VALUE=key.value)
    constants |= dict(
        KEY_PAD=_power(key.key), VALUE_PAD=_power(key.value), MEMBERS=group.members, SLOTS=group.slots
    )
    constants |= dict(
        WORDS=group.words, PLACES=group.places, RAGGED=key.ragged, PARTS=key.parts, TILE=key.tile
    )
    grid = key.batch * group.members, key.parts
    options = dict(num_warps=4, num_stages=1)
    names = {name: name for name in pointers}
    return _launch(key, "step_attention", f"attention{number}", names, types, constants, options, grid)


def _draw(key: StepKey) -> Launch:
    pointers = "logits done integers reals table streams tokens x".split()
    types = dict.fromkeys("logits reals table streams".split(), "fp32")
    types |= dict.fromkeys("done integers tokens".split(), "i32")
    constants = dict(BATCH=key.batch, COUNT=key.count, COUNT_PAD=_power(key.count), WIDTH=key.width)
    constants |= dict(WIDTH_PAD=_power(key.width), RAGGED=key.ragged, CUT=key.cut)
    options = dict(num_warps=8 if key.cut else 4, num_stages=1)
    return _launch(
        key, "step_draw", "draw", {name: name for name in pointers}, types, constants, options, (key.batch, 1)
    )


def _launch(key, function, name, pointers, types, constants, options, grid) -> Launch:
    constants = constants | dict(PDL=int(key.early and key.capability >= 90))
    signature = {argument: "*" + (types.get(argument) or ELEMENT[key.dtype]) for argument in pointers}
    return Launch(
        function=function,
        signature=signature | dict.fromkeys(constants, "constexpr"),
        constexprs=constants,
        attrs={(index,): [["tt.divisibility", 16]] for index in range(len(pointers))},
        options=options | dict(enable_fp_fusion=True),
        grid=(str(grid[0]), str(grid[1]), "1"),
        args=tuple(f"p:{pointer}" for pointer in pointers.values()),
        name=name,
    )


def _power(number: int) -> int:
    """The least power of two that is not below number."""
    return 1 << max(0, number - 1).bit_length()
