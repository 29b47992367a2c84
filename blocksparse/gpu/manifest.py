"""Which kernels a pass of attention compiles to and how they are launched, as data.

Imports neither Triton nor TensorFlow. A manifest is text, one record a line:

    blocksparse-manifest 2 KEY
    file NAME BYTES DIGEST
    temp NAME BYTES
    launch NAME FILE FUNCTION WARPS SHARED GRIDX GRIDY GRIDZ ARG ARG ...

DIGEST is file_digest's. A temp's BYTES, GRID and i: arguments are integer expressions over batch, heads, kv_heads,
query_time, key_time, the plan's query_rows and key_rows and its headers (q.most_tiles ...; all names are in
launcher/manifest.h, which reads this).
An ARG is p:NAME (pointer), i:EXPRESSION (int32), f:scale or f:scale_log2 (float). Triton's trailing scratch pointers
are not listed; kernels in CUDA C++ have none.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

from . import cuda, tuning
from .key import Key, parse

ELEMENT = {"f16": "fp16", "bf16": "bf16", "f32": "fp32", "tf32": "fp32"}  # Triton's names
_PLAN = ("head_tiles", "rows", "row_count", "offset", "full", "columns", "mask", "masks")
_TENSORS = {"q", "k", "v", "out", "dout", "dq", "dk", "dv"}
_FLOATS = {"lse", "dlse", "delta"}


@dataclass(frozen=True)
class _Kernel:
    """What one kernel takes besides the plan and the sizes."""

    side: str  # whose rows its programs own: q or k
    tensors: str
    scales: str


_CUT = "query_segments key_segments cut_spans cut_columns cut_mask cut_masks cut_sources"
_FORWARD = _Kernel("q", "q k v out lse", "scale_log2")
_KERNELS = {
    "attention_forward": _FORWARD,
    "attention_closed_forward": _FORWARD,
    "attention_whole_gradient": _Kernel("q", "q k v out lse dout dlse dq dk dv", "scale scale_log2"),
    "attention_query_gradient": _Kernel("q", "q k v out lse dout dlse delta dq", "scale scale_log2"),
    "attention_key_gradient": _Kernel("k", "q k v lse dout delta dk dv", "scale scale_log2"),
    "attention_cut_queries": _Kernel("q", _CUT, ""),
    "attention_cut_keys": _Kernel("k", _CUT, ""),
}
_ARE_CUTS = {"attention_cut_queries", "attention_cut_keys"}
_CUT_LAUNCH = tuning.Launch(warps=4, stages=1, registers=None, split=False, heaviest_first=False)
_KNOWS_SINGLE = {"attention_closed_forward", "attention_whole_gradient"}


@dataclass(frozen=True)
class Launch:
    """One kernel: what triton.compile needs, or NVRTC (constexprs are its macros), then how to launch it."""

    function: str  # a name in kernels/ or cuda/
    signature: dict[str, str]  # every argument, then every constant, in one flat list; kernels/ groups them
    constexprs: dict[str, Any]
    attrs: dict[tuple[int], list]
    options: dict[str, Any]
    grid: tuple[str, str, str]
    args: tuple[str, ...]  # one for each argument of the signature
    name: str  # of this launch among those of its key, and of its file


def launches(key: Key | str, **how) -> list[Launch]:
    """The kernels of one pass, in launch order; how: fields of tuning.Launch, in place of the table's."""
    key = parse(key) if isinstance(key, str) else key
    return [_launch(key, function, how) for function in key.functions]


def temps(key: Key | str) -> list[tuple[str, str]]:
    """(name, bytes) of the device memory a pass needs while it runs."""
    key = parse(key) if isinstance(key, str) else key
    two_passes = key.op == "backward" and not key.one_pass
    found = [("delta", "4*batch*heads*query_time")] if two_passes else []
    for function in key.functions:
        if function in _ARE_CUTS:
            found += _cut_temps(key, _KERNELS[function].side)
    return found


def _cut_temps(key: Key, side: str) -> list[tuple[str, str]]:
    """Room for all column tiles of a side, for each batch row and group: kernels/cut.py describes it."""
    m, n, g = _side(key, side)
    lists = f"batch*{_groups(key, side)}*{side}.column_tiles"
    return [
        (f"{side}.cut_spans", f"12*batch*{_groups(key, side)}*{side}.tiles"),
        (f"{side}.cut_columns", f"{4 * (n // g)}*{lists}"),
        (f"{side}.cut_mask", f"4*{lists}"),
        (f"{side}.cut_masks", f"{4 * m * -(-n // 32)}*{lists}"),
        (f"{side}.cut_sources", f"4*{lists}"),
    ]


def _cut_shares(key: Key) -> int:
    """Programs a row tile. In a closed plan it has one or a few column tiles, and where heads have plans of their own
    there are many row tiles: more programs would wait for room, and read the same again.
    """
    if cuda.serves(key.capability):
        return 4
    return 3 - key.closed if key.closed else 4 if key.shared else 2


def _cut_numbers(key: Key) -> int:
    """Segment numbers that a program loads at a time. Where rows are short most of 4,096 would be those of the last
    tile, again and again, and each a load of its own where numbers lie apart (benchmarks/LOG.md, section 29).
    """
    if key.closed:
        return 128
    return 512 if not key.long_rows else 4096 if key.shared else 2048


def _groups(key: Key, side: str) -> str:
    """Heads that lie in orders of their own have lists of their own; of keys, as many as there are key heads."""
    heads = "kv_heads" if key.group > 1 and side == "k" else "heads"
    return heads if key.orders else "1"


def text(
    key: Key | str,
    files: dict[str, tuple[str, bytes, str, int, int]],
    steps: list[Launch] | None = None,
    scratch: list[tuple[str, str]] | None = None,
) -> str:
    """The manifest; files[launch.name] = (file, its bytes, symbol, warps, shared bytes), as the compiler left them.

    steps, scratch: launches and temps, those of a pass of attention where they are not given.
    """
    lines = [f"blocksparse-manifest 2 {key}"]
    lines += [f"file {file} {len(code)} {file_digest(code)}" for file, code, *_ in files.values()]
    lines += [f"temp {name} {size}" for name, size in (temps(key) if scratch is None else scratch)]
    for launch in launches(key) if steps is None else steps:
        file, _, symbol, warps, shared = files[launch.name]
        words = ["launch", launch.name, file, symbol, str(warps), str(shared), *launch.grid, *launch.args]
        lines.append(" ".join(words))
    return "\n".join(lines) + "\n"


def file_digest(code: bytes) -> str:
    """What the launcher compares a file with before the driver gets it."""
    return hashlib.blake2b(code, digest_size=16).hexdigest()


def _launch(key: Key, function: str, changes: dict) -> Launch:
    kernel = _KERNELS[function]
    m, n, _ = _side(key, kernel.side)
    dims = key.head_dim, key.value_dim
    how = replace(_how(key, function, m, n), **changes)
    rows = m if how.roles or cuda.serves(key.capability) else _part(m)
    pointers = [*kernel.tensors.split(), "head_index", "residues", *_PLAN]
    integers = ["heads", "query_time", "key_time", "tiles"]
    integers += ["query_rows", "key_rows"] if key.bounded else []
    integers += ["count"] if how.roles else []  # behind `sizes`, as the kernels have it
    integers += ["batches", "column_tiles", "mask_words"] if function in _ARE_CUTS else []
    signature = {name: _pointer_type(key, name) for name in pointers}
    signature |= dict.fromkeys(kernel.scales.split(), "fp32") | dict.fromkeys(integers, "i32")
    constexprs = _constants(key, kernel, how, rows) | _constants_of_kind(key, function, how)
    values = _values(key, kernel) | _cut_values(key, function)
    grid = count = values["count"].removeprefix("i:")
    options = dict(num_warps=how.warps, num_stages=how.stages, maxnreg=how.registers, enable_fp_fusion=True)
    if cuda.serves(key.capability):
        shape = cuda.shape(function, key.dtype, *dims, m, n, key.capability)
        constexprs = cuda.macros(function, constexprs, key.dtype, key.capability, shape)
        options = dict(num_warps=shape.warps, shared=shape.shared)
        grid = f"{count}*{max(1, m // shape.rows)}"
    elif how.programs:
        grid = f"min({how.programs}*multiprocessors,{count})"
    elif rows < m and function not in _ARE_CUTS:
        grid = f"{m // rows}*{count}"
    name = function + ("_roles" if how.roles else "")
    return Launch(
        function=name,
        signature=signature | dict.fromkeys(constexprs, "constexpr"),
        constexprs=constexprs,
        # Every pointer is 16-byte aligned: TensorFlow's buffers are, and rows are multiples of 16 bytes.
        attrs={(index,): [["tt.divisibility", 16]] for index in range(len(pointers))},
        options=options,
        grid=(grid, "1", "1"),
        args=tuple(values.get(argument, f"p:{argument}") for argument in signature),
        name=name,
    )


def _how(key: Key, function: str, m: int, n: int) -> tuning.Launch:
    """The table's way of launching a kernel: with warp roles for tiles of m rows, else for what a program takes."""
    if function in _ARE_CUTS:
        return _CUT_LAUNCH
    dims = key.head_dim, key.value_dim
    how = tuning.launch(function, key.dtype, *dims, m, n, key.long_rows, key.capability)
    if how.roles or _part(m) == m:
        return how
    return tuning.launch(function, key.dtype, *dims, _part(m), n, key.long_rows, key.capability, plain=True)


def _part(m: int) -> int:
    """Rows of a program of a plain kernel. Triton's shapes are powers of two: a row tile of 192 is three programs'."""
    return 64 if m == 192 else m


def _side(key: Key, side: str) -> tuple[int, int, int]:
    found = key.by_query if side == "q" else key.by_key
    assert found is not None  # a forward key has no kernel whose rows are keys
    return found


def _constants(key: Key, kernel: _Kernel, how: tuning.Launch, rows: int) -> dict[str, Any]:
    """The flags that every kernel has; rows: of a program."""
    m, n, g = _side(key, kernel.side)
    return dict[str, Any](
        HEAD_DIM=key.head_dim,
        VALUE_DIM=key.value_dim,
        HEAD_PAD=tuning.padded(key.head_dim),
        VALUE_PAD=tuning.padded(key.value_dim),
        M=rows,
        N=n,
        GRANULE=g,
        HEAVIEST_FIRST=how.heaviest_first,
        PERMUTED=key.permuted,
        SHARED=key.shared,
        WIDE=key.wide,
    ) | {
        name: value
        for name, value in (
            ("JOINED", key.joined),
            ("GROUP", key.group),
            ("SEGMENTS", key.segments),
            ("ORDERS", key.orders),
            ("BOUNDED", key.bounded),
            ("PARTS", m // rows),
        )
        if value > 1 or value is True
    }


def _constants_of_kind(key: Key, function: str, how: tuning.Launch) -> dict[str, Any]:
    """The flags of plain kernels or of those with warp roles."""
    if function in _ARE_CUTS:
        _, n, _ = _side(key, _KERNELS[function].side)
        keep = key.closed > 0 and function == "attention_cut_queries" and not cuda.serves(key.capability)
        return dict(KEEP=keep, SHARES=_cut_shares(key), AT_ONCE=_cut_numbers(key) // n)
    if how.roles:
        turns = 2 if how.programs else 1
        order = dict(HEADS_IN_TURN=True) if how.heads_in_turn else {}
        return dict(COLUMNS=how.roles, STAGES=how.stages, REGISTERS=how.registers, TURNS=turns) | order
    single = dict(SINGLE=key.closed == 2) if function in _KNOWS_SINGLE else {}
    return single | dict(SPLIT=how.split, PRECISION="tf32" if key.dtype == "tf32" else "ieee")


def _values(key: Key, kernel: _Kernel) -> dict[str, str]:
    """What the launcher passes for the arguments that are no tensors. `heads` are those whose rows programs own."""
    side, of_keys = kernel.side, key.group > 1 and kernel.side == "k"
    heads = "kv_heads" if of_keys else "heads"
    values = {name: f"p:{side}.{name}" for name in _PLAN} | {
        name: f"f:{name}" for name in kernel.scales.split()
    }
    if of_keys:
        values |= dict(head_index="p:key_index", residues="p:key_residues")
    values |= dict(heads=f"i:{heads}") | {
        name: f"i:{name}" for name in ("query_time", "key_time", "query_rows", "key_rows")
    }
    return values | dict(tiles=f"i:{side}.most_tiles", count=f"i:{side}.most_tiles*{heads}*batch")


def _cut_values(key: Key, function: str) -> dict[str, str]:
    """What is passed otherwise where positions have segment numbers: to a cut its room, to others what it left."""
    if not key.segments:
        return {}
    side = _KERNELS[function].side
    room = {name: f"p:{side}.{name}" for name in _CUT.split() if name.startswith("cut_")}
    if function not in _ARE_CUTS:
        lists = dict(offset="cut_spans", columns="cut_columns", mask="cut_mask", masks="cut_masks")
        return {name: room[cut] for name, cut in lists.items()}
    masks = dict(_cut_temps(key, side))[f"{side}.cut_masks"]
    sizes = dict(batches="i:batch", column_tiles=f"i:{side}.column_tiles", mask_words=f"i:{masks}/4")
    return room | sizes | dict(count=f"i:{_cut_shares(key)}*{side}.tiles*batch*{_groups(key, side)}")


def _pointer_type(key: Key, name: str) -> str:
    if name in _TENSORS:
        return "*" + ELEMENT[key.dtype]
    return "*fp32" if name in _FLOATS else "*i32"
