"""The names of NumPy 1.13 to 1.19 that are gone from NumPy 2, given back to the process."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from typing import Any

import numpy as np

_RENAMED = {
    "Inf": "inf",
    "Infinity": "inf",
    "NaN": "nan",
    "PINF": "inf",
    "alltrue": "all",
    "asfarray": "asarray",
    "complex_": "complex128",
    "cumproduct": "cumprod",
    "float_": "float64",
    "infty": "inf",
    "int0": "intp",
    "mat": "asmatrix",
    "object0": "object_",
    "product": "prod",
    "round_": "round",
    "row_stack": "vstack",
    "singlecomplex": "complex64",
    "sometrue": "any",
    "string_": "bytes_",
    "trapz": "trapezoid",
    "unicode_": "str_",
}
_OF_PYTHON = ("bool", "complex", "float", "int", "object", "str")


def provide() -> None:
    """Add what NumPy lacks and nothing else: names that it has mean what they mean in it."""
    names: dict[str, Any] = {name: getattr(builtins, name) for name in _OF_PYTHON}
    names |= {old: getattr(np, new) for old, new in _RENAMED.items() if hasattr(np, new)}
    names |= {"NINF": -np.inf, "unicode": str, "asscalar": lambda a: a.item()}
    names["asfarray"] = lambda a, dtype=np.float64: np.asarray(a, dtype)
    for name, value in names.items():
        if name not in vars(np):
            setattr(np, name, value)
    if getattr(np.fromstring, "__module__", "") != __name__:
        np.fromstring = _reading_bytes(np.fromstring)  # type: ignore[assignment]


def _reading_bytes(of_text: Callable) -> Callable:
    """np.fromstring that takes bytes again, as it did without sep."""

    def fromstring(string, dtype=float, count=-1, sep="", **more):
        if sep:
            return of_text(string, dtype, count, sep=sep, **more)
        data = string.encode("latin-1") if isinstance(string, str) else string
        return np.frombuffer(data, dtype, count).copy()

    return fromstring
