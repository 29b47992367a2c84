"""Who sees whom: a pattern is one predicate of (query, key), written once.

The dense mask, the block layout, the mask callback and the decoding step all come from it. Those of the modes look
both ways; `causal` is joined to them where time has a direction (`prefix` has it in itself). A predicate uses
only `// % - < <= & | ~`, so that it takes NumPy arrays and TensorFlow tensors alike (`==` on tensors compares
identities in TensorFlow 1 graphs). modes.py gives patterns the names that `attn_mode` knows; sections are the
paper's (arXiv 1904.10509).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import lcm

NO_SHIFT = (
    1 << 30
)  # as a shift: no two positions of a context lie so far apart, so nothing repeats along the diagonal


@dataclass(frozen=True)
class Pattern:
    """A predicate of index arrays and what repeats in it, which is what makes long contexts cheap to plan.

    sees(query, key): boolean, broadcast over both.
    shift: sees(i + shift, j + shift) == sees(i, j).
    period, reach: sees(i, j - period) == sees(i, j) where i - j >= reach.
    ahead: nothing is seen where j - i > ahead; 0 for causal patterns, None where nothing is promised.

    Patterns compose with `&`, `|` and `~`.
    """

    sees: Callable
    shift: int = 1
    period: int = 1
    reach: int = 0
    ahead: int | None = None

    def __and__(self, other: Pattern) -> Pattern:
        known = [pattern.ahead for pattern in (self, other) if pattern.ahead is not None]
        return self._joined(other, lambda i, j: self.sees(i, j) & other.sees(i, j), min(known, default=None))

    def __or__(self, other: Pattern) -> Pattern:
        ahead = None if None in (self.ahead, other.ahead) else max(self.ahead, other.ahead)
        return self._joined(other, lambda i, j: self.sees(i, j) | other.sees(i, j), ahead)

    def __invert__(self) -> Pattern:
        return Pattern(lambda i, j: ~self.sees(i, j), self.shift, self.period, self.reach)

    def __bool__(self):
        raise TypeError("a Pattern has no truth value; compose patterns with &, | and ~")

    def _joined(self, other: Pattern, sees: Callable, ahead: int | None) -> Pattern:
        shift = min(lcm(self.shift, other.shift), NO_SHIFT)
        period = lcm(self.period, other.period)
        return Pattern(sees, shift, period, max(self.reach, other.reach), ahead)


causal = Pattern(lambda i, j: j <= i, ahead=0)
everything = Pattern(lambda i, j: (i <= i) & (j <= j))
nothing = Pattern(lambda i, j: j < j, ahead=0)


def local(window: int) -> Pattern:
    """Keys less than `window` away, the query's own included (section 4.3, A1 of strided, as in Figure 3)."""
    return Pattern(lambda i, j: (i - j < window) & (j - i < window), reach=window, ahead=window)


def strided(stride: int) -> Pattern:
    """Every stride-th key, counted from the query (section 4.3, A2 of strided)."""
    return Pattern(lambda i, j: (i - j) % stride < 1, period=stride)


def chunk(length: int) -> Pattern:
    """Keys of the query's chunk (section 4.3, A1 of fixed)."""

    def sees(i, j):
        return (i // length <= j // length) & (j // length <= i // length)

    return Pattern(sees, shift=length, reach=length, ahead=length)


def previous(length: int) -> Pattern:
    """Keys of the chunks beside the query's; once `causal` is joined, of the one before it."""

    def sees(i, j):
        near = (i // length <= j // length + 1) & (j // length <= i // length + 1)
        return near & ((i // length < j // length) | (j // length < i // length))

    return Pattern(sees, shift=length, reach=2 * length, ahead=2 * length)


def summary(length: int, first: int, last: int) -> Pattern:
    """Columns first <= j % length < last of every chunk (section 4.3, A2 of fixed)."""
    return Pattern(lambda i, j: (first <= j % length) & (j % length < last), shift=length, period=length)


def prefix(length: int) -> Pattern:
    """The first `length` keys, and every key up to the query's own: a prefix whose positions see each other."""
    return Pattern(lambda i, j: (j < length) | (j <= i), shift=NO_SHIFT, ahead=length)


def residue_classes(n_ctx: int, stride: int, without: Pattern = nothing) -> Pattern:
    """What `strided` sees and `without` does not, block-diagonal in the order (i % stride, i // stride).

    Row r stands for position (r % length) * stride + r // length, length = n_ctx / stride.
    """
    length = n_ctx // stride

    def position(row):
        return row % length * stride + row // length

    def sees(i, j):
        same = (i // length <= j // length) & (j // length <= i // length)
        return same & ~without.sees(position(i), position(j))

    return Pattern(sees, shift=length * without.shift, reach=length, ahead=length)
