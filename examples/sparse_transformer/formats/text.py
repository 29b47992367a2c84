"""Text: a file's bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from . import DataError

ENWIK8 = "the first 10^8 bytes of a Wikipedia dump, http://mattmahoney.net/dc/enwik8.zip, unpacked"


def read_text(path: Path) -> np.ndarray:
    """The file's bytes [length]; a file called enwik8 must be the whole of it."""
    if not path.is_file():
        raise DataError(path, "no such file", f"a text file, or {ENWIK8}")
    data = np.memmap(path, np.uint8, mode="r") if path.stat().st_size else np.zeros(0, np.uint8)
    if bytes(data[:4]) == b"PK\3\4":
        raise DataError(path, "this is a zip archive; unpack it", f"a text file, or {ENWIK8}")
    if path.name == "enwik8" and len(data) != 10**8:
        raise DataError(path, f"{len(data):,} bytes instead of 100,000,000", ENWIK8)
    return data
