"""CIFAR-10's pickles, read without importing or calling anything of the file's choosing.

A pickle is a program. Of its instructions those pass that build plain values; of the functions it may name, NumPy's
reconstruction of an array, and those are stand-ins from this file, which take arrays of bytes (u1) and of int64 (i8).
"""

from __future__ import annotations

import io
import pickle
import pickletools
from math import prod

import numpy as np

# What protocols 0 to 4 use for dicts, lists, tuples, bytes, text, numbers, and for calls of the stand-ins.
INSTRUCTIONS = set(
    "PROTO FRAME STOP MARK POP POP_MARK EMPTY_DICT DICT SETITEM SETITEMS EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE "
    "TUPLE TUPLE1 TUPLE2 TUPLE3 NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT "
    "STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 UNICODE BINUNICODE SHORT_BINUNICODE "
    "BINUNICODE8 PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET MEMOIZE GLOBAL STACK_GLOBAL REDUCE BUILD".split()
)
SHAPE = (10_000, 3072)  # images of a batch, bytes of an image
DTYPES = {"u1": np.dtype("u1"), "i8": np.dtype("<i8")}


class _Dtype:
    """numpy.dtype: u1 or i8, little endian."""

    def __init__(self, name, *_):
        name = name.decode("latin1") if isinstance(name, bytes) else name
        if not isinstance(name, str) or name not in DTYPES:
            raise pickle.UnpicklingError("an array of something else than u1 or i8 has no place in CIFAR-10")
        self.dtype = DTYPES[name]

    def __setstate__(self, state):
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("|", "<", b"|", b"<"):
            raise pickle.UnpicklingError("an array that is not little endian has no place in CIFAR-10")


class _Array:
    """What numpy's _reconstruct makes: an array once its state is known."""

    value: np.ndarray | None = None

    def __setstate__(self, state):
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes) or not isinstance(shape, tuple):
            raise pickle.UnpicklingError("an array without dtype, shape and bytes")
        if not all(type(size) is int and size >= 0 for size in shape):
            raise pickle.UnpicklingError(f"an array of shape {shape!r}")
        if prod(shape) * dtype.dtype.itemsize != len(raw):
            raise pickle.UnpicklingError(f"an array of shape {shape} in {len(raw):,} bytes")
        self.value = np.frombuffer(raw, dtype.dtype).reshape(shape, order="F" if fortran else "C")


def _ndarray(*_):
    raise pickle.UnpicklingError("numpy.ndarray is called, which has no place in CIFAR-10")


def _reconstruct(kind, *_):
    if kind is not _ndarray:
        raise pickle.UnpicklingError("an array of another class has no place in CIFAR-10")
    return _Array()


class _Unpickler(pickle.Unpickler):
    def __init__(self, raw: bytes):
        super().__init__(io.BytesIO(raw), encoding="bytes")
        self.left = 2 * len(
            raw
        )  # bytes that may be encoded: a short program could ask for the same text many times

    def _encode(self, text, encoding="latin1"):
        """_codecs.encode, by which Python 3 writes bytes for readers of Python 2."""
        if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
            raise pickle.UnpicklingError("an encoding other than latin1 has no place in CIFAR-10")
        self.left -= len(text)
        if self.left < 0:
            raise pickle.UnpicklingError("more bytes than the file holds")
        return text.encode("latin1")

    def find_class(self, module, name):
        known = {
            ("_codecs", "encode"): self._encode,
            ("numpy", "ndarray"): _ndarray,
            ("numpy", "dtype"): _Dtype,
            ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
            ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in CIFAR-10")
        return known[module, name]


def load_batch(raw: bytes) -> np.ndarray:
    """The array `data` of a batch, uint8 [10000, 3072]. Raises ValueError for anything else."""
    try:
        tuples = 0
        for instruction, argument, _ in pickletools.genops(raw):
            tuples += "TUPLE" in instruction.name
            if (
                tuples > 1_000
            ):  # ten in a real batch; the hash of a million, each in the next, overflows C's stack
                raise ValueError("more tuples than CIFAR-10 has")
            if instruction.name not in INSTRUCTIONS:
                raise ValueError(f"the instruction {instruction.name} has no place in CIFAR-10")
            if "PUT" in instruction.name and argument > len(raw):
                raise ValueError("its memo is larger than the file")  # the unpickler would make room for it
        content = _Unpickler(raw).load()
        data = content[b"data" if b"data" in content else "data"].value
    except (
        Exception
    ) as error:  # a parser of mutated bytes fails in any way; none of it ran what the file chose
        raise ValueError(str(error) or type(error).__name__) from error
    if data is None or data.dtype != np.uint8 or data.shape != SHAPE:
        raise ValueError("its `data` is no array of 10,000 images of 3,072 bytes")
    return data
