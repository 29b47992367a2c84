"""The arguments that belong together, as the kernels take them: the plan's arrays, the sizes, the flags.

The manifest and the launcher know one flat list; a tuple of arguments is the same list to the machine code. What each
one means stands in the package's docstring.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Plan(NamedTuple):
    """The arrays of the plan's side whose rows the programs own, int32 in device memory."""

    head_index: Any
    residues: Any
    head_tiles: Any
    rows: Any
    row_count: Any
    offset: Any
    full: Any
    columns: Any
    mask: Any
    masks: Any


class Sizes(NamedTuple):
    """Numbers that may differ from call to call, int32."""

    heads: Any
    query_time: Any
    key_time: Any
    tiles: Any


class BoundedSizes(NamedTuple):
    """Sizes, and the plan's rows, which are more than the tensors'."""

    heads: Any
    query_time: Any
    key_time: Any
    tiles: Any
    query_rows: Any
    key_rows: Any


class Extent(NamedTuple):
    """How many rows one side has."""

    time: Any  # in the tensors
    rows: Any  # in the plan


class RowLayout(NamedTuple):
    """How a head's rows lie in a tensor and in registers."""

    DIM: int
    PAD: int
    WIDE: bool
    BOUNDED: bool = False


class Flags(NamedTuple):
    """What is fixed when a kernel is compiled; None where a kernel has no such flag."""

    QK: RowLayout  # of q, k, dq, dk
    VO: RowLayout  # of v, out, dout, dv
    M: int
    N: int
    GRANULE: int
    HEAVIEST_FIRST: bool
    PERMUTED: bool
    SHARED: bool
    SINGLE: bool = False
    SPLIT: bool | None = None
    PRECISION: str | None = None
    COLUMNS: int | None = None
    STAGES: int | None = None
    REGISTERS: int | None = None
    TURNS: int | None = None
    HEADS_IN_TURN: bool = False
    JOINED: bool = False
    GROUP: int = 1
    SEGMENTS: bool = False
    ORDERS: bool = False
    KEEP: bool | None = None
    SHARES: int | None = None
    AT_ONCE: int | None = None
    PARTS: int = 1


def flags_of(constexprs: dict) -> Flags:
    """The flags out of a launch's flat list."""
    rest = dict(constexprs)
    both = rest.pop("WIDE"), rest.pop("BOUNDED", False)
    qk = RowLayout(rest.pop("HEAD_DIM"), rest.pop("HEAD_PAD"), *both)
    return Flags(qk, RowLayout(rest.pop("VALUE_DIM"), rest.pop("VALUE_PAD"), *both), **rest)


class ColumnTiles(NamedTuple):
    """The column tiles that one row tile visits; made and taken apart inside a kernel."""

    columns: Any  # pointer to the granules of the first
    mask: Any  # pointer to its mask number
    masks: Any  # the table of masks, from the program's rows on
    unmasked: Any  # the first so many are seen whole
    count: Any
    extent: Any  # of the tensors that are gathered from
    stride: Any  # of this head's residue classes


GROUPS: dict[str, Any] = dict(plan=Plan, sizes=Sizes, bounded_sizes=BoundedSizes)


def grouped(names, values: dict, constexprs: dict) -> dict:
    """The arguments of a kernel with parameters `names`, out of a launch's flat lists of arguments and of constants."""

    def argument(name):
        if name == "flags":
            return flags_of(constexprs)
        if name in GROUPS:
            group = GROUPS["bounded_sizes" if name == "sizes" and "query_rows" in values else name]
            return group(**{field: values[field] for field in group._fields})
        return values[name]

    return {name: argument(name) for name in names}


def source_parts(names, launch) -> tuple[dict, dict, dict]:
    """(signature, constants, attributes) of a launch as triton.compile wants them of a kernel with parameters `names`.

    Constants in a tuple are given one by one, by their paths: Triton 3.6 and 3.7 do not take a tuple of them.
    """
    types = grouped(names, launch.signature, launch.constexprs)
    flat = list(launch.signature)
    hints = {flat[index]: hint for (index,), hint in launch.attrs.items()}
    where = grouped(names, {name: name for name in flat}, launch.constexprs)
    constants = dict(_leaves(types["flags"], (list(names).index("flags"),)))
    attributes = {path: hints[name] for path, name in _leaves(tuple(where.values())) if name in hints}
    return types | dict(flags=_constexprs(types["flags"])), constants, attributes


def _leaves(value, path: tuple[int, ...] = ()):
    if not isinstance(value, tuple):
        yield path, value
        return
    for place, each in enumerate(value):
        yield from _leaves(each, (*path, place))


def _constexprs(value):
    return type(value)(*map(_constexprs, value)) if isinstance(value, tuple) else "constexpr"
