"""Text: the bytes of a file, or of a folder's files one after the other."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np

from . import DataError, kinds

ENWIK8 = "the first 10^8 bytes of a Wikipedia dump, http://mattmahoney.net/dc/enwik8.zip, unpacked"
TEXT = f"a text file or a folder of such, or {ENWIK8}"
DICTIONARY = (
    "a dictionary of dictd, such as gcide.dict.dz of GCIDE: python examples/fetch.py gcide --out FOLDER"
)
LARGEST = 1 << 28  # bytes of a dictionary, unpacked; GCIDE has 40 million
OTHERS = {  # first bytes of what is no text, and how it becomes one
    b"PK\3\4": "this is a zip archive; unpack it",
    b"\x1f\x8b": "this is compressed; unpack it with gunzip",
    b"BZh": "this is compressed; unpack it with bunzip2",
    b"\xfd7zXZ": "this is compressed; unpack it with unxz",
    b"%PDF": "this is a PDF; convert it with pdftotext",
}


def read_text(path: Path) -> np.ndarray:
    """The bytes [length]; a file called enwik8 must be the whole of it."""
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise DataError(path, "no such file", TEXT)
    if path.name.endswith(".dict.dz"):
        return _read_dictionary(path)
    data = np.memmap(path, np.uint8, mode="r") if path.stat().st_size else np.zeros(0, np.uint8)
    if problem := kinds.repair("text", path) or _not_text(bytes(data[:4096])):
        raise DataError(path, problem, TEXT)
    if path.name == "enwik8" and len(data) != 10**8:
        raise DataError(path, f"{len(data):,} bytes instead of 100,000,000", ENWIK8)
    return data


def _read_dictionary(path: Path) -> np.ndarray:
    """The articles one after the other, with their markup: dictd's packing is gzip with an index in its header."""
    try:
        with gzip.open(path) as file:
            data = file.read(LARGEST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(path, f"cannot be unpacked ({error})", DICTIONARY) from error
    if len(data) > LARGEST:
        raise DataError(path, f"unpacks to more than {LARGEST:,} bytes", DICTIONARY)
    return np.frombuffer(data, np.uint8)


def _read_folder(path: Path) -> np.ndarray:
    """Every file of text below the folder, in the order of their names; hidden ones and others are left out."""
    files = [
        file
        for file in sorted(path.rglob("*"))
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]
    texts = []
    for file in files:
        raw = file.read_bytes()
        if not kinds.repair("text", file) and not _not_text(raw[:4096]) and b"\0" not in raw[:4096]:
            texts.append(raw)
    if not texts:
        none = f"none of its {len(files):,} files is text"
        raise DataError(path, kinds.repair("text", path) or none, TEXT)
    return np.frombuffer(b"\n".join(texts), np.uint8)


def _not_text(start: bytes) -> str | None:
    return next((problem for mark, problem in OTHERS.items() if start.startswith(mark)), None)
