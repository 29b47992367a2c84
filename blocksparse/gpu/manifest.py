"""Which kernels a pass of attention compiles to and how they are launched, as data.

Imports neither Triton nor TensorFlow.

A key names one compiled pass, in one word:

    forward-<dtype>-d<head_dim>-v<value_dim>-m<M>-n<N>-g<g>-o<0|1>-w<0|1>-s<0|1>-r<0|1>-c<0|1|2>-sm<capability>
    backward-<dtype>-d<head_dim>-v<value_dim>-m<M>-n<N>-g<g>-M<M>-N<N>-G<g>-o..-w..-s..-r..-c..-sm<capability>

dtype is f16, bf16, f32 (exact) or tf32; m, n, g are the plan's by_query tiles and granule, M, N, G those of by_key;
o1: some head's rows are permuted; w1: a tensor passes 2^31 elements; s1: one plan serves all heads; r1: long rows, at
least LONG column tiles a row tile on average (by_query); c1: closed, every key is seen in one row tile only, so that
one kernel can make all gradients; c2: closed and every row tile has one column tile.

A manifest is text, one record a line:

    blocksparse-manifest 1 KEY
    temp NAME BYTES
    launch NAME FILE FUNCTION WARPS SHARED GRIDX GRIDY GRIDZ ARG ARG ...

BYTES, GRID and i: arguments are integer expressions over batch, heads, query_time, key_time and the plan's headers
(q.most_tiles ...). An ARG is p:NAME (pointer), i:EXPRESSION (int32), f:scale or f:scale_log2 (float). Triton's trailing
scratch pointers are not listed.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, replace

if __package__:
    from . import tuning
else:  # a process that compiles holds no TensorFlow, and so not the package around this folder
    import tuning

LONG = 20
ELEMENT = {"f16": "fp16", "bf16": "bf16", "f32": "fp32", "tf32": "fp32"}
_PLAN = ("head_tiles", "rows", "row_count", "offset", "full", "columns", "mask", "masks")
_TENSORS = {"q", "k", "v", "out", "dout", "dq", "dk", "dv"}
_FLOATS = {"lse", "dlse", "delta"}
_KEY = re.compile(
    r"(?P<op>forward|backward)-(?P<dtype>f16|bf16|f32|tf32)-d(?P<head_dim>\d+)-v(?P<value_dim>\d+)"
    r"-m(?P<m>\d+)-n(?P<n>\d+)-g(?P<g>\d+)(?:-M(?P<key_m>\d+)-N(?P<key_n>\d+)-G(?P<key_g>\d+))?"
    r"-o(?P<permuted>[01])-w(?P<wide>[01])-s(?P<shared>[01])-r(?P<long_rows>[01])-c(?P<closed>[012])-sm(?P<capability>\d+)"
)


@dataclass(frozen=True)
class Key:
    """What decides the machine code of one pass."""

    op: str  # forward | backward
    dtype: str  # f16 | bf16 | f32 | tf32
    head_dim: int
    value_dim: int
    by_query: tuple[int, int, int]  # M, N, granule
    by_key: tuple[int, int, int] | None  # likewise; None in a forward key
    permuted: bool
    wide: bool
    shared: bool
    long_rows: bool
    closed: int  # 0, 1 or 2
    capability: int

    def __str__(self) -> str:
        m, n, g = self.by_query
        by_key = "-M{}-N{}-G{}".format(*self.by_key) if self.by_key else ""
        flags = f"-o{self.permuted:d}-w{self.wide:d}-s{self.shared:d}-r{self.long_rows:d}-c{self.closed:d}"
        tiles = f"m{m}-n{n}-g{g}{by_key}"
        return f"{self.op}-{self.dtype}-d{self.head_dim}-v{self.value_dim}-{tiles}{flags}-sm{self.capability}"


@dataclass(frozen=True)
class Launch:
    """One kernel: what triton.compile needs, then how to launch it."""

    function: str  # a name in kernels/
    signature: dict[str, str]
    constexprs: dict[str, object]
    attrs: dict[tuple[int], list]
    options: dict[str, object]
    grid: tuple[str, str, str]
    args: tuple[str, ...]


def parse(key: str) -> Key:
    """The inverse of str(Key). Raises ValueError naming a key that is none."""
    found = _KEY.fullmatch(key)
    if not found or (found["op"] == "backward") != (found["key_m"] is not None):
        raise ValueError(
            f"key={key!r} names no kernel; wanted e.g. forward-f16-d64-v64-m64-n64-g32-o0-w0-s1-r0-c0-sm90"
        )
    by_key = tuple(int(found[name]) for name in ("key_m", "key_n", "key_g")) if found["key_m"] else None
    return Key(
        op=found["op"],
        dtype=found["dtype"],
        head_dim=int(found["head_dim"]),
        value_dim=int(found["value_dim"]),
        by_query=(int(found["m"]), int(found["n"]), int(found["g"])),
        by_key=by_key,
        **{flag: found[flag] == "1" for flag in ("permuted", "wide", "shared", "long_rows")},
        closed=int(found["closed"]),
        capability=int(found["capability"]),
    )


def one_pass(key: Key) -> bool:
    """Whether one kernel makes all gradients; in float32 it would hold more than the registers do."""
    return key.closed and tuning.DTYPES[key.dtype] == "half"


def launches(key: Key | str, **how) -> list[Launch]:
    """The kernels of one pass, in launch order; how: fields of tuning.Launch, in place of the table's."""
    key = parse(key) if isinstance(key, str) else key
    one, single = functools.partial(_launch, key, how), dict(SINGLE=key.closed == 2)
    if key.op == "forward" and key.closed:
        return [one("attention_closed_forward", "q", "q k v out lse", "scale_log2", **single)]
    if key.op == "forward":
        return [one("attention_forward", "q", "q k v out lse", "scale_log2")]
    if one_pass(key):
        tensors = "q k v out lse dout dlse dq dk dv"
        return [one("attention_whole_gradient", "q", tensors, "scale scale_log2", **single)]
    return [
        one("attention_query_gradient", "q", "q k v out lse dout dlse delta dq", "scale scale_log2"),
        one("attention_key_gradient", "k", "q k v lse dout delta dk dv", "scale scale_log2"),
    ]


def temps(key: Key | str) -> list[tuple[str, str]]:
    """(name, bytes) of the device memory a pass needs while it runs."""
    key = parse(key) if isinstance(key, str) else key
    return [] if key.op == "forward" or one_pass(key) else [("delta", "4*batch*heads*query_time")]


def text(key: Key | str, files: dict[str, tuple[str, str, int, int]]) -> str:
    """The manifest; files[function] = (file, symbol, warps, shared bytes), as the compiler left them."""
    lines = [f"blocksparse-manifest 1 {key}"]
    lines += [f"temp {name} {size}" for name, size in temps(key)]
    for launch in launches(key):
        file, symbol, warps, shared = files[launch.function]
        words = ["launch", launch.function, file, symbol, str(warps), str(shared), *launch.grid, *launch.args]
        lines.append(" ".join(words))
    return "\n".join(lines) + "\n"


def _launch(key: Key, how: dict, function: str, side: str, tensors: str, scales: str, **more) -> Launch:
    """how: as launches takes it; side: whose rows the programs own, q or k; more: constants of this kernel alone."""
    m, n, g = key.by_query if side == "q" else key.by_key
    dims = key.head_dim, key.value_dim
    how = replace(tuning.launch(function, key.dtype, *dims, m, n, key.long_rows, key.capability), **how)
    pointers = [*tensors.split(), "head_index", "order", *_PLAN]
    integers = ["heads", "query_time", "key_time", "tiles"]
    signature = {name: _pointer_type(key, name) for name in pointers}
    signature |= dict.fromkeys(scales.split(), "fp32") | dict.fromkeys(integers, "i32")
    constexprs = dict(
        HEAD_DIM=key.head_dim,
        VALUE_DIM=key.value_dim,
        HEAD_PAD=tuning.padded(key.head_dim),
        VALUE_PAD=tuning.padded(key.value_dim),
        M=m,
        N=n,
        GRANULE=g,
        HEAVIEST_FIRST=how.heaviest_first,
        PERMUTED=key.permuted,
        SHARED=key.shared,
        WIDE=key.wide,
        **more,
    )
    grid = count = f"{side}.most_tiles*heads*batch"
    if how.roles:
        function += "_roles"
        constexprs |= dict(COLUMNS=how.roles, STAGES=how.stages, REGISTERS=how.registers)
        constexprs |= dict(TURNS=2 if how.programs else 1)
        signature |= dict(count="i32")
        grid = f"min({how.programs}*multiprocessors,{count})" if how.programs else count
    else:
        constexprs |= dict(SPLIT=how.split, PRECISION="tf32" if key.dtype == "tf32" else "ieee")
    names = {name: f"p:{side}.{name}" for name in _PLAN} | {name: f"f:{name}" for name in scales.split()}
    names |= {name: f"i:{name}" for name in integers}
    names |= {"tiles": f"i:{side}.most_tiles", "count": f"i:{count}"}
    return Launch(
        function=function,
        signature=signature | dict.fromkeys(constexprs, "constexpr"),
        constexprs=constexprs,
        # Every pointer is 16-byte aligned: TensorFlow's buffers are, and rows are multiples of 16 bytes.
        attrs={(index,): [["tt.divisibility", 16]] for index in range(len(pointers))},
        options=dict(
            num_warps=how.warps, num_stages=how.stages, maxnreg=how.registers, enable_fp_fusion=True
        ),
        grid=(grid, "1", "1"),
        args=tuple(names.get(name, f"p:{name}") for name in signature),
    )


def _pointer_type(key: Key, name: str) -> str:
    if name in _TENSORS:
        return "*" + ELEMENT[key.dtype]
    return "*fp32" if name in _FLOATS else "*i32"
