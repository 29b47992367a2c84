"""Who sees whom: a pattern is one predicate of (query, key), written once.

The dense mask, the block layout, the mask callback and the decoding step all come from it. A predicate uses
only `// % - < <= & | ~`, so that it takes NumPy arrays and TensorFlow tensors alike (`==` on tensors compares
identities in TensorFlow 1 graphs). Modes are the rows of the table in `blocksparse_attention_impl`; sections
are the paper's (arXiv 1904.10509).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import reduce
from math import gcd, lcm

import numpy as np
from scipy import sparse

MODES = ("all", "local", "strided", "chunk", "summary", "fixed")
_CHUNK = 4096  # blocks evaluated at once


@dataclass(frozen=True)
class Pattern:
    """A predicate of index arrays and what repeats in it, which is what makes long contexts cheap to plan.

    sees(query, key): boolean, broadcast over both.
    shift: sees(i + shift, j + shift) == sees(i, j).
    period, reach: sees(i, j - period) == sees(i, j) where i - j >= reach.

    Patterns compose with `&`, `|` and `~`.
    """

    sees: Callable
    shift: int = 1
    period: int = 1
    reach: int = 0

    def __and__(self, other: Pattern) -> Pattern:
        return self._joined(other, lambda i, j: self.sees(i, j) & other.sees(i, j))

    def __or__(self, other: Pattern) -> Pattern:
        return self._joined(other, lambda i, j: self.sees(i, j) | other.sees(i, j))

    def __invert__(self) -> Pattern:
        return Pattern(lambda i, j: ~self.sees(i, j), self.shift, self.period, self.reach)

    def __bool__(self):
        raise TypeError("a Pattern has no truth value; compose patterns with &, | and ~")

    def _joined(self, other: Pattern, sees: Callable) -> Pattern:
        return Pattern(
            sees, lcm(self.shift, other.shift), lcm(self.period, other.period), max(self.reach, other.reach)
        )


causal = Pattern(lambda i, j: j <= i)
nothing = Pattern(lambda i, j: j < j)


def local(window: int) -> Pattern:
    """The last `window` keys, the query's own included (section 4.3, A1 of strided, as in Figure 3)."""
    return Pattern(lambda i, j: i - j < window, reach=window)


def strided(stride: int) -> Pattern:
    """Every stride-th key, counted back from the query (section 4.3, A2 of strided)."""
    return Pattern(lambda i, j: (i - j) % stride < 1, period=stride)


def chunk(length: int) -> Pattern:
    """Keys of the query's chunk or of later ones (section 4.3, A1 of fixed, once `causal` is joined)."""
    return Pattern(lambda i, j: i // length <= j // length, shift=length, reach=length)


def summary(length: int, first: int, last: int) -> Pattern:
    """Columns first <= j % length < last of every chunk (section 4.3, A2 of fixed)."""
    return Pattern(lambda i, j: (first <= j % length) & (j % length < last), shift=length, period=length)


def residue_classes(n_ctx: int, stride: int, without: Pattern = nothing) -> Pattern:
    """What `strided` sees and `without` does not, block-diagonal in the order (i % stride, i // stride).

    Row r stands for position (r % length) * stride + r // length, length = n_ctx / stride.
    """
    length = n_ctx // stride

    def position(row):
        return row % length * stride + row // length

    def sees(i, j):
        return (i // length <= j // length) & (j <= i) & ~without.sees(position(i), position(j))

    return Pattern(sees, shift=length * without.shift, reach=length)


@dataclass(frozen=True)
class Mode:
    """What one head does: the names joined in "a+b", and the numbers they need."""

    names: tuple[str, ...]
    local_attn_ctx: int | None
    first: int | None = None  # summary columns first .. last - 1 of each chunk
    last: int | None = None

    def natural(self) -> Pattern | None:
        """The union of every name but strided, or None where there is no other."""
        found = [self._part(name) for name in self.names if name != "strided"]
        return causal & reduce(Pattern.__or__, found) if found else None

    def pattern(self) -> Pattern:
        """The whole union, in the natural order of positions."""
        return causal & reduce(Pattern.__or__, [self._part(name) for name in self.names])

    def _part(self, name: str) -> Pattern:
        if name == "all":
            return causal
        if name == "fixed":
            return self._part("chunk") | self._part("summary")
        if name == "summary":
            return summary(self.local_attn_ctx, self.first, self.last)
        return {"local": local, "strided": strided, "chunk": chunk}[name](self.local_attn_ctx)

    def passes(self, n_ctx: int) -> list[tuple[Pattern, int]]:
        """(pattern, order) of each block-sparse pass over this mode; their key sets are disjoint.

        Order is that of `BlocksparseTransformer.attention`: 1 is natural, s groups positions equal modulo s.
        """
        natural = self.natural()
        found = [] if natural is None else [(natural, 1)]
        if "strided" in self.names:
            stride = self.local_attn_ctx
            without = nothing if natural is None else natural
            found.append((residue_classes(n_ctx, stride, without), stride))
        return found


def head_modes(
    attn_mode: str | Sequence[str],
    heads: int | None = None,
    local_attn_ctx: int | None = None,
    blocksize: int = 32,
    num_verts: int | None = None,
    vertsize: int | None = None,
) -> tuple[Mode, ...]:
    """The distinct modes of an `attn_mode`: head h has number h % len(result). heads caps them.

    Raises ValueError and TypeError for arguments that mean no pattern.
    """
    per_head = [_check_names(mode, attn_mode) for mode in as_modes(attn_mode)]
    sizes = {"blocksize": blocksize}
    if heads is not None:
        sizes["heads"] = heads
    if any(names != ("all",) for names in per_head):
        sizes["local_attn_ctx"] = local_attn_ctx
    cycle = len(per_head)
    if any(map(has_summary, per_head)):
        sizes |= {"num_verts": num_verts, "vertsize": vertsize}
    for name, size in sizes.items():
        _check_size(name, size, attn_mode)
    if "num_verts" in sizes:
        _check_summary(local_attn_ctx, blocksize, num_verts, vertsize)
        cycle = lcm(cycle, num_verts)
    modes = []
    for head in range(min(cycle, heads or cycle)):
        names = per_head[head % len(per_head)]
        if has_summary(names):
            last = local_attn_ctx - head % num_verts * vertsize * blocksize
            modes.append(Mode(names, local_attn_ctx, last - vertsize * blocksize, last))
        else:
            modes.append(Mode(names, local_attn_ctx))
    return tuple(modes)


def as_modes(attn_mode: str | Sequence[str]) -> tuple[str, ...]:
    """One mode a head, cycled: a lone string is the same for all."""
    modes = (attn_mode,) if isinstance(attn_mode, str) else attn_mode
    if not isinstance(modes, Sequence) or not modes or not all(isinstance(mode, str) for mode in modes):
        raise TypeError(
            f"attn_mode is {attn_mode!r}; give one mode, such as 'local', or a tuple with one a head"
        )
    return tuple(modes)


def _check_names(mode: str, attn_mode: str | Sequence[str]) -> tuple[str, ...]:
    names = tuple(mode.split("+"))
    for name in names:
        if name not in MODES:
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


def check_positive(name: str, size) -> None:
    """Raises TypeError or ValueError where size is no positive int."""
    if isinstance(size, bool) or not isinstance(size, (int, np.integer)):
        raise TypeError(f"{name} is {size!r}; it has to be a positive int")
    if size < 1:
        raise ValueError(f"{name}={size}; it has to be at least 1")


def _check_summary(local_attn_ctx: int, blocksize: int, num_verts: int, vertsize: int) -> None:
    groups = local_attn_ctx // (vertsize * blocksize)
    if num_verts > groups:
        nearest = f"num_verts={groups}" if groups else f"local_attn_ctx={num_verts * vertsize * blocksize}"
        raise ValueError(
            f"num_verts={num_verts} groups of vertsize * blocksize = {vertsize} * {blocksize} columns do not "
            f"fit a chunk of local_attn_ctx={local_attn_ctx}; nearest: {nearest}"
        )


def has_summary(names: Collection[str]) -> bool:
    """Whether a mode's names need num_verts and vertsize."""
    return not {"summary", "fixed"}.isdisjoint(names)


class BlockTable:
    """A pattern at the grain of blocks: every block has a representative with the same mask among a few.

    Blocks that differ by a shift along the diagonal have equal masks; so have blocks of one query that differ
    by a period of keys, once they lie beyond the reach.
    """

    def __init__(self, pattern: Pattern, blocksize: int):
        self.pattern = pattern
        self.blocksize = blocksize
        self.shift = pattern.shift // gcd(pattern.shift, blocksize)
        self.period = pattern.period // gcd(pattern.period, blocksize)
        self.near = -(
            -(pattern.reach + blocksize - 1) // blocksize
        )  # first block diagonal wholly beyond the reach

    def representative(self, query, key) -> tuple[np.ndarray, np.ndarray]:
        """Block numbers, arrays -> those of the block with the same mask that stands for all its kind."""
        gap = np.asarray(query) - key
        gap = np.where(gap < self.near, gap, self.near + (gap - self.near) % self.period)
        key = (query - gap) % self.shift
        return key + gap, key

    def masks(self, query, key) -> np.ndarray:
        """Block numbers, arrays [n] -> bool [n, blocksize, blocksize]."""
        inside = np.arange(self.blocksize, dtype=np.int32)
        i = np.asarray(query, np.int32)[:, None, None] * self.blocksize + inside[:, None]
        j = np.asarray(key, np.int32)[:, None, None] * self.blocksize + inside
        return np.broadcast_to(self.pattern.sees(i, j), (len(i), self.blocksize, self.blocksize))

    def layout(self, blocks: int) -> sparse.csr_matrix:
        """Boolean [blocks, blocks]: where anything is seen. Costs what is active, never blocks squared."""
        near = min(self.near, blocks)
        active = self._active(min(self.shift, blocks), min(near + self.period, blocks))
        key, gap = np.divmod(np.arange(blocks * near), max(near, 1))
        seen = (key + gap < blocks) & active[key % self.shift, gap]
        pairs = [(key[seen] + gap[seen], key[seen]), *self._far(active, near, blocks)]
        rows, columns = (np.concatenate(part) for part in zip(*pairs))
        return sparse.csr_matrix((np.ones(len(rows), bool), (rows, columns)), (blocks, blocks))

    def _active(self, shifts: int, gaps: int) -> np.ndarray:
        """[key block % shift, query block - key block]: whether anything is seen there."""
        key, gap = np.divmod(np.arange(shifts * gaps), max(gaps, 1))
        parts = [slice(start, start + _CHUNK) for start in range(0, len(key), _CHUNK)]
        found = [self.masks(key[part] + gap[part], key[part]).any((1, 2)) for part in parts]
        return np.concatenate(found or [np.zeros(0, bool)]).reshape(shifts, gaps)

    def _far(self, active: np.ndarray, near: int, blocks: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Pairs beyond the reach: queries equal modulo a cycle see the same keys, up to their own."""
        if not active[:, near:].any():
            return []
        pairs = []
        cycle = lcm(self.shift, self.period)
        for start in range(min(cycle, blocks)):
            queries = np.arange(start, blocks, cycle)
            keys = np.arange(queries[-1] - near + 1)
            keys = keys[active[keys % self.shift, near + (start - near - keys) % self.period]]
            counts = np.searchsorted(keys, queries - near, side="right")
            pairs.append((np.repeat(queries, counts), np.concatenate([keys[:count] for count in counts])))
        return pairs
