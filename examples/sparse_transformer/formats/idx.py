"""Images in the idx format of MNIST's kin: uint8 [images, 1, side, side].

A file is two zero bytes, 8 for unsigned bytes, the number of dimensions, each dimension's size as a big-endian uint32,
then the values; it may be packed by gzip.
"""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from math import prod
from pathlib import Path

import numpy as np

from . import DataError

FASHION = (
    "the folder with train-images-idx3-ubyte.gz and t10k-images-idx3-ubyte.gz of Fashion-MNIST, packed or not: "
    "python examples/fetch.py fashion --out FOLDER"
)
LARGEST = 1 << 27  # bytes of values; Fashion-MNIST's training images have 47 million
UNSIGNED = 8


def read_idx(path: Path) -> np.ndarray:
    """The array of a file, packed by gzip or not. Raises ValueError for anything but unsigned bytes, all there."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        try:
            return _array(gzip.GzipFile(fileobj=file) if packed else file)
        except (OSError, EOFError, zlib.error, struct.error) as error:
            raise ValueError(str(error)) from error


def _array(stream: io.BufferedIOBase | gzip.GzipFile) -> np.ndarray:
    zeros, kind, dimensions = struct.unpack(">HBB", stream.read(4))
    if zeros or kind != UNSIGNED or not dimensions:
        raise ValueError(
            f"it begins with {zeros:04x} {kind:02x} {dimensions:02x}, not with 0000 08 and a number"
        )
    shape = struct.unpack(f">{dimensions}I", stream.read(4 * dimensions))
    if prod(shape) > LARGEST:
        raise ValueError(f"its header says {prod(shape):,} bytes, more than {LARGEST:,}")
    values = stream.read(prod(shape) + 1)
    if len(values) != prod(shape):
        there = "more" if len(values) > prod(shape) else f"{len(values):,}"
        raise ValueError(f"its header says {prod(shape):,} bytes, and there are {there}")
    return np.frombuffer(values, np.uint8).reshape(shape)


def read_fashion(folder: Path, training: bool) -> np.ndarray:
    """The 60,000 training images or the 10,000 test images, uint8 [images, 1, 28, 28]."""
    name, count = ("train", 60_000) if training else ("t10k", 10_000)
    found = [folder / f"{name}-images-idx3-ubyte{ending}" for ending in ("", ".gz")]
    path = next((path for path in found if path.is_file()), None)
    if path is None:
        raise DataError(folder, f"{found[1].name} is missing", FASHION)
    try:
        images = read_idx(path)
    except ValueError as error:
        raise DataError(path, f"damaged or no idx file ({error})", FASHION) from error
    if images.shape != (count, 28, 28):
        raise DataError(path, f"an array of {list(images.shape)} instead of [{count}, 28, 28]", FASHION)
    return images[:, None]
