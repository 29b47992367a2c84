"""The names that `attn_mode` knows, one row of TABLE each; a new pattern is one row here and one predicate.

attention.py builds its passes from the rows, decode.py its caches, and the error messages read them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import reduce
from math import lcm
from typing import Any

from . import caches, patterns
from .checks import check_block_size, check_positive, nearest_divisor, nearest_multiple
from .patterns import Pattern, causal, everything, nothing, residue_classes

# No context is as long, and int32 holds it: a longer window, stride or chunk shows the same.
LONGEST = 2**30


@dataclass(frozen=True)
class Mode:
    """What one head does: the names joined in "a+b", and the numbers they need.

    The predicates take arrays in the place of the numbers as well: decode.py gives several heads' columns at once.
    """

    names: tuple[str, ...]
    local_attn_ctx: Any = None
    first: Any = None  # summary columns first .. last - 1 of each chunk
    last: Any = None
    causal: bool = True

    @property
    def parts(self) -> tuple[str, ...]:
        """The names, those that stand for several replaced by them."""
        return _parts(self.names)

    @property
    def prefix(self) -> int:
        """So many first positions see keys ahead of them although the mode is causal."""
        return self.local_attn_ctx if self.causal and "prefix" in self.parts else 0

    @property
    def looks_ahead(self) -> bool:
        """Some query sees a key ahead of it."""
        return not self.causal or self.prefix > 0

    @property
    def sees_itself(self) -> bool:
        """Every query sees its own key, so that none sees nothing."""
        return any(TABLE[part].sees_itself for part in self.parts)

    def natural(self) -> Pattern | None:
        """The union of all that is planned in the order of positions, or None where there is nothing of it."""
        parts = [part for part in self.parts if not TABLE[part].by_residue]
        return self._union(parts) if parts else None

    def pattern(self) -> Pattern:
        """The whole union, in the natural order of positions."""
        return self._union(self.parts)

    def one_pass(self, n_ctx: int) -> Pattern:
        """What one layout shows of it: that of residue classes in their order where there is nothing else."""
        return self.passes(n_ctx)[0][0] if self.natural() is None else self.pattern()

    def passes(self, n_ctx: int, by_residue: bool = True) -> list[tuple[Pattern, int]]:
        """(pattern, order) of each block-sparse pass over this mode; their key sets are disjoint.

        Order is that of `BlocksparseTransformer.attention`: 1 is natural, s groups positions equal modulo s, which
        divides n_ctx. by_residue: False keeps all of it in the natural order.
        """
        if not by_residue:
            return [(self.pattern(), 1)]
        natural = self.natural()
        found = [] if natural is None else [(natural, 1)]
        if any(TABLE[part].by_residue for part in self.parts):
            stride = self.local_attn_ctx
            without = nothing if natural is None else natural
            found.append((self._directed(residue_classes(n_ctx, stride, without)), stride))
        return found

    def _union(self, parts: Sequence[str]) -> Pattern:
        past = [TABLE[part].pattern(self) for part in parts if not TABLE[part].looks_ahead]
        found = [self._directed(reduce(Pattern.__or__, past))] if past else []
        found += [TABLE[part].pattern(self) for part in parts if TABLE[part].looks_ahead]
        return reduce(Pattern.__or__, found)

    def _directed(self, pattern: Pattern) -> Pattern:
        return (causal if self.causal else everything) & pattern  # either broadcasts over both axes


@dataclass(frozen=True)
class Sizes:
    """The arguments that say how an attention's blocks lie, as `blocksparse_attention_impl` takes them."""

    n_ctx: int
    heads: int
    attn_mode: str | Sequence[str]
    blocksize: int
    local_attn_ctx: Any
    num_verts: Any
    vertsize: Any
    causal: bool = True


@dataclass(frozen=True)
class Row:
    """One mode: either the parts it is the union of, or its predicate and what goes with it."""

    parts: tuple[str, ...] = ()
    pattern: Callable[[Mode], Pattern] = lambda mode: nothing
    needs: tuple[str, ...] = ()  # arguments that have to be positive ints
    divides: tuple[Callable[[Sizes], None], ...] = ()  # raise ValueError where blocks cannot hold the pattern
    by_residue: bool = False  # its blocks lie in the order (i % local_attn_ctx, i // local_attn_ctx)
    looks_ahead: bool = False  # its pattern says itself what a causal query sees ahead
    sees_itself: bool = True  # every query sees its own key
    cache: Callable[[Mode, int], caches.Cache] | None = None  # of a mode with n_ctx positions


def check_stride(n_ctx: int, local_attn_ctx: int, blocksize: int) -> None:
    """Raises ValueError unless residue classes modulo local_attn_ctx are whole blocks."""
    if n_ctx % local_attn_ctx or n_ctx // local_attn_ctx % blocksize:
        raise ValueError(
            f"local_attn_ctx={local_attn_ctx} does not divide n_ctx / blocksize = {n_ctx} / {blocksize}, as "
            f"'strided' needs; nearest: {nearest_divisor(n_ctx // blocksize, local_attn_ctx)}"
        )


def _classes_are_blocks(sizes: Sizes) -> None:
    check_stride(sizes.n_ctx, sizes.local_attn_ctx, sizes.blocksize)


def _chunks_are_blocks(sizes: Sizes) -> None:
    length, blocksize = sizes.local_attn_ctx, sizes.blocksize
    if length % blocksize:
        raise ValueError(
            f"local_attn_ctx={length} is no multiple of blocksize={blocksize}, which "
            f"attn_mode={sizes.attn_mode!r} wants; nearest: {nearest_multiple(length, blocksize)}"
        )


def _groups_fill_chunks(sizes: Sizes) -> None:
    blocks, vertsize = sizes.local_attn_ctx // sizes.blocksize, sizes.vertsize
    if blocks % vertsize:
        raise ValueError(
            f"vertsize={vertsize} does not divide local_attn_ctx / blocksize = {blocks}; "
            f"nearest: {nearest_divisor(blocks, vertsize)}"
        )


def _groups_share_heads(sizes: Sizes) -> None:
    heads, num_verts = sizes.heads, sizes.num_verts
    if heads % num_verts:
        raise ValueError(
            f"num_verts={num_verts} does not divide heads={heads}; nearest: {nearest_divisor(heads, num_verts)}"
        )


TABLE = {
    "all": Row(pattern=lambda mode: everything, cache=caches.everything),
    "local": Row(
        pattern=lambda mode: patterns.local(mode.local_attn_ctx),
        needs=("local_attn_ctx",),
        cache=caches.window,
    ),
    "strided": Row(
        pattern=lambda mode: patterns.strided(mode.local_attn_ctx),
        needs=("local_attn_ctx",),
        divides=(_classes_are_blocks,),
        by_residue=True,
        cache=caches.every_class,
    ),
    "chunk": Row(
        pattern=lambda mode: patterns.chunk(mode.local_attn_ctx),
        needs=("local_attn_ctx",),
        divides=(_chunks_are_blocks,),
        cache=caches.one_chunk,
    ),
    "previous": Row(
        pattern=lambda mode: patterns.previous(mode.local_attn_ctx),
        needs=("local_attn_ctx",),
        divides=(_chunks_are_blocks,),
        sees_itself=False,
        cache=caches.two_chunks,
    ),
    "summary": Row(
        pattern=lambda mode: patterns.summary(mode.local_attn_ctx, mode.first, mode.last),
        needs=("local_attn_ctx", "num_verts", "vertsize"),
        divides=(_chunks_are_blocks, _groups_fill_chunks, _groups_share_heads),
        sees_itself=False,
        cache=caches.columns,
    ),
    "fixed": Row(parts=("chunk", "summary")),
    "prefix": Row(
        pattern=lambda mode: patterns.prefix(mode.local_attn_ctx) if mode.causal else everything,
        needs=("local_attn_ctx",),
        looks_ahead=True,
        cache=caches.everything,
    ),
}
MODES = tuple(TABLE)


def check_causal(causal: bool) -> None:
    """Raises TypeError unless causal is True or False."""
    if not isinstance(causal, bool):
        raise TypeError(f"causal is {causal!r}; give True, or False for queries that look ahead as well")


def head_modes(
    attn_mode: str | Sequence[str],
    heads: int | None = None,
    local_attn_ctx: int | None = None,
    blocksize: int = 32,
    num_verts: int | None = None,
    vertsize: int | None = None,
    causal: bool = True,
) -> tuple[Mode, ...]:
    """The distinct modes of an `attn_mode`: head h has number h % len(result). heads caps them.

    Raises ValueError and TypeError for arguments that mean no pattern.
    """
    check_causal(causal)
    per_head = [_check_names(mode, attn_mode) for mode in as_modes(attn_mode)]
    given = dict(local_attn_ctx=local_attn_ctx, num_verts=num_verts, vertsize=vertsize)
    needed = needs(name for names in per_head for name in names)
    sizes = {"blocksize": blocksize} | ({} if heads is None else {"heads": heads})
    for name, size in (sizes | {name: given[name] for name in given if name in needed}).items():
        _check_size(name, size, attn_mode)
    cycle = len(per_head)
    local_attn_ctx = local_attn_ctx and min(local_attn_ctx, LONGEST)
    if "num_verts" in needed:
        _check_summary(local_attn_ctx, blocksize, num_verts, vertsize)
        cycle = lcm(cycle, num_verts)
    modes = []
    for head in range(min(cycle, heads or cycle)):
        names = per_head[head % len(per_head)]
        if "num_verts" in needs(names):
            last = local_attn_ctx - head % num_verts * vertsize * blocksize
            modes.append(Mode(names, local_attn_ctx, last - vertsize * blocksize, last, causal))
        else:
            modes.append(Mode(names, local_attn_ctx, causal=causal))
    return tuple(modes)


def block_modes(sizes: Sizes) -> tuple[Mode, ...]:
    """head_modes of patterns that whole blocks can hold. Raises ValueError where they cannot."""
    modes = head_modes(
        sizes.attn_mode,
        sizes.heads,
        sizes.local_attn_ctx,
        sizes.blocksize,
        sizes.num_verts,
        sizes.vertsize,
        sizes.causal,
    )
    n_ctx, blocksize = sizes.n_ctx, sizes.blocksize
    check_block_size("blocksize", blocksize)
    if n_ctx % blocksize or n_ctx < 1:
        nearest = nearest_multiple(n_ctx, blocksize)
        raise ValueError(f"n_ctx={n_ctx} is no multiple of blocksize={blocksize}; nearest n_ctx: {nearest}")
    parts = {part for mode in modes for part in mode.parts}
    for name, row in TABLE.items():
        for check in row.divides if name in parts else ():
            check(sizes)
    return modes


def as_modes(attn_mode: str | Sequence[str]) -> tuple[str, ...]:
    """One mode a head, cycled: a lone string is the same for all."""
    modes = (attn_mode,) if isinstance(attn_mode, str) else attn_mode
    if not isinstance(modes, Sequence) or not modes or not all(isinstance(mode, str) for mode in modes):
        raise TypeError(
            f"attn_mode is {attn_mode!r}; give one mode, such as 'local', or a tuple with one a head"
        )
    return tuple(modes)


def needs(names: Iterable[str]) -> set[str]:
    """The arguments that modes need beside blocksize."""
    return {need for part in _parts(names) for need in TABLE[part].needs}


def _parts(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(part for name in names for part in TABLE[name].parts or (name,))


def _check_names(mode: str, attn_mode: str | Sequence[str]) -> tuple[str, ...]:
    names = tuple(mode.split("+"))
    for name in names:
        if name not in TABLE:
            nearest = get_close_matches(name, MODES, n=1, cutoff=0)[0]
            raise ValueError(
                f"attn_mode={attn_mode!r} has no mode {name!r}; use {', '.join(MODES)}, or several joined by "
                f"+; nearest: {nearest!r}"
            )
    return names


def _check_size(name: str, size: int | None, attn_mode: str | Sequence[str]) -> None:
    if size is None:
        raise ValueError(f"{name} is None, but attn_mode={attn_mode!r} needs it: give a positive int")
    check_positive(name, size)


def _check_summary(local_attn_ctx: Any, blocksize: int, num_verts: Any, vertsize: Any) -> None:
    groups = local_attn_ctx // (vertsize * blocksize)
    if num_verts > groups:
        nearest = f"num_verts={groups}" if groups else f"local_attn_ctx={num_verts * vertsize * blocksize}"
        raise ValueError(
            f"num_verts={num_verts} groups of vertsize * blocksize = {vertsize} * {blocksize} columns do not "
            f"fit a chunk of local_attn_ctx={local_attn_ctx}; nearest: {nearest}"
        )
