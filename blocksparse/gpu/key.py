"""The key of a pass: everything that decides its machine code, in one word.

    forward-<dtype>-d<head_dim>-v<value_dim>-m<M>-n<N>-g<g>-o<0|1>-w<0|1>-s<0|1>-r<0|1>-c<0|1|2>-sm<capability>
    backward-<dtype>-d<head_dim>-v<value_dim>-m<M>-n<N>-g<g>-M<M>-N<N>-G<g>-o..-w..-s..-r..-c..-sm<capability>

with -j1 before -sm where `joined`, then -k<group> where query heads share key heads, then -i1 where `segments` (-i2
where also `orders`), then -b1 where `bounded`.

The launcher makes the same word in C++ (key_of in launcher/launcher.cc; a test compares the two), looks for a folder of
that name among the compiled kernels, and hands the word to compile.py where there is none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from . import cuda

LONG = 20  # column tiles a row tile: from here on rows are long, and have launches of their own in the tables
NARROW_ELEMENTS = 2**31 - 1  # a tensor of more is addressed with 64-bit offsets
CUTS = ("attention_cut_queries",), ("attention_cut_keys",)  # of the plan's sides, before what reads them
_TEXT = re.compile(
    r"(?P<op>forward|backward)-(?P<dtype>f16|bf16|f32|tf32)-d(?P<head_dim>\d+)-v(?P<value_dim>\d+)"
    r"-m(?P<m>\d+)-n(?P<n>\d+)-g(?P<g>\d+)(?:-M(?P<key_m>\d+)-N(?P<key_n>\d+)-G(?P<key_g>\d+))?"
    r"-o(?P<permuted>[01])-w(?P<wide>[01])-s(?P<shared>[01])-r(?P<long_rows>[01])-c(?P<closed>[012])"
    r"(?P<joined>-j1)?(?:-k(?P<group>[1-9]\d*))?(?P<segments>-i[12])?(?P<bounded>-b1)?-sm(?P<capability>\d+)"
)


@dataclass(frozen=True)
class Key:
    """What decides the machine code of one pass."""

    op: str  # forward | backward
    dtype: str  # f16 | bf16 | f32 (exact products) | tf32 (of float32, rounded to 10 bits of mantissa)
    head_dim: int
    value_dim: int
    by_query: tuple[int, int, int]  # M, N and granule of the plan's side
    by_key: tuple[int, int, int] | None  # likewise; None in a forward key, which needs none
    permuted: bool  # o: some head's rows are ordered by residue class
    wide: bool  # w: a tensor has more than NARROW_ELEMENTS
    shared: bool  # s: all heads have one plan
    long_rows: bool  # r: at least LONG column tiles a row tile on average, by query; of both passes
    closed: int  # c, 1: no key is seen in two row tiles; 2: nor has a row tile two column tiles; else 0
    capability: int  # sm: ten times the GPU's compute capability
    joined: bool = (
        False  # j: the results hold those of passes over other keys, and get those over the keys of all
    )
    group: int = 1  # k: so many query heads read one key head
    segments: bool = False  # i: positions have segment numbers
    orders: bool = False  # i, 2: and heads lie in different orders
    bounded: bool = False  # b: tensors have fewer rows than the plan

    def __str__(self) -> str:
        m, n, g = self.by_query
        by_key = "-M{}-N{}-G{}".format(*self.by_key) if self.by_key else ""
        flags = f"-o{self.permuted:d}-w{self.wide:d}-s{self.shared:d}-r{self.long_rows:d}-c{self.closed:d}"
        flags += "-j1" if self.joined else ""
        flags += f"-k{self.group}" if self.group > 1 else ""
        flags += f"-i{1 + self.orders}" if self.segments else ""
        flags += "-b1" if self.bounded else ""
        tiles = f"m{m}-n{n}-g{g}{by_key}"
        return f"{self.op}-{self.dtype}-d{self.head_dim}-v{self.value_dim}-{tiles}{flags}-sm{self.capability}"

    @property
    def functions(self) -> tuple[str, ...]:
        """The kernels of the pass in launch order, by their names in kernels/ or cuda/; with warp roles they end in
        _roles.
        """
        cut_queries, cut_keys = CUTS if self.segments else ((), ())
        if self.op == "forward":
            closed = self.closed and not cuda.serves(self.capability)
            return *cut_queries, "attention_closed_forward" if closed else "attention_forward"
        if self.one_pass:
            return *cut_queries, "attention_whole_gradient"
        return *cut_queries, "attention_query_gradient", *cut_keys, "attention_key_gradient"

    @property
    def one_pass(self) -> bool:
        """Whether one kernel makes all gradients. In float32 its three sums would not fit in the registers; where heads
        share keys, or a row tile is several programs', these would add to one key's gradients.
        """
        closed = bool(self.closed) and self.group == 1 and self.by_query[0] <= 128
        return closed and self.dtype in ("f16", "bf16") and not cuda.serves(self.capability)


def parse(text: str) -> Key:
    """The inverse of str(Key). Raises ValueError naming a key that is none."""
    found = _TEXT.fullmatch(text)
    if not found or (found["op"] == "backward") != (found["key_m"] is not None):
        raise ValueError(
            f"key={text!r} names no kernel; wanted e.g. forward-f16-d64-v64-m64-n64-g32-o0-w0-s1-r0-c0-sm90"
        )
    by_key = (int(found["key_m"]), int(found["key_n"]), int(found["key_g"])) if found["key_m"] else None
    return Key(
        op=found["op"],
        dtype=found["dtype"],
        head_dim=int(found["head_dim"]),
        value_dim=int(found["value_dim"]),
        by_query=(int(found["m"]), int(found["n"]), int(found["g"])),
        by_key=by_key,
        permuted=found["permuted"] == "1",
        wide=found["wide"] == "1",
        shared=found["shared"] == "1",
        long_rows=found["long_rows"] == "1",
        closed=int(found["closed"]),
        capability=int(found["capability"]),
        joined=found["joined"] is not None,
        group=int(found["group"] or 1),
        segments=found["segments"] is not None,
        orders=found["segments"] == "-i2",
        bounded=found["bounded"] is not None,
    )


def key_of(
    plan: Any,
    op: str,
    dtype: str,
    head_dim: int,
    value_dim: int,
    batch: int = 1,
    capability: int = 90,
    joined: bool = False,
    segments: bool = False,
    bounded: bool = False,
) -> Key:
    """The key of one pass over a plan.

    plan: a blocksparse.plan.plan.Plan. (Its class is not imported: this folder also stands alone, see compile.py.)
    op, dtype, head_dim, value_dim, capability, joined, segments, bounded: as in Key. batch: its rows, which matter for
        `wide` alone.
    """
    by_query, by_key = (
        (side.row_tile, side.column_tile, side.granule) for side in (plan.by_query, plan.by_key)
    )
    elements = batch * max(plan.query_time, plan.key_time) * len(plan.head_index) * max(head_dim, value_dim)
    return Key(
        op=op,
        dtype=dtype,
        head_dim=head_dim,
        value_dim=value_dim,
        by_query=by_query,
        by_key=by_key if op == "backward" else None,
        permuted=bool((plan.residues != 1).any()),
        wide=elements > NARROW_ELEMENTS,
        shared=len(plan.by_query.head_tiles) == 2,
        long_rows=len(plan.by_query.columns) >= LONG * len(plan.by_query.rows),
        closed=plan.closed,
        capability=capability,
        joined=joined,
        group=plan.group,
        segments=segments,
        orders=segments and len(set(plan.residues.tolist())) > 1,
        bounded=bounded,
    )
