"""NumPy's npz files, of any origin: no memory is taken that the file does not fill, and nothing is unpickled."""

from __future__ import annotations

import zipfile
from math import prod
from pathlib import Path

import numpy as np

SMALL, RATIO = 1 << 26, 100  # bytes unpacked, and times the file's size: what is above both is refused


def read_npz(path: Path, names: tuple[str, ...] | None = None) -> dict[str, np.ndarray]:
    """The arrays by name, or those of `names` alone. Raises ValueError for whatever is wrong with the file."""
    try:
        largest = max(SMALL, RATIO * path.stat().st_size)
        with zipfile.ZipFile(path) as archive:
            members = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
            wanted = members if names is None else names
            missing = [name for name in wanted if name not in members]
            if missing:
                raise ValueError(f"no array {missing[0]!r}")
            if sum(members[name].file_size for name in wanted) > largest:
                raise ValueError(f"unpacks to more than {RATIO} times its size")
            return {name: _array(archive, members[name]) for name in wanted}
    except (
        Exception
    ) as error:  # zipfile, zlib and NumPy's header reader fail in ways of their own on mutated bytes
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in read:
            raise ValueError(f"{entry.filename} has version {version} of the npy format")
        shape, fortran, dtype = read[version](file)
        if dtype.kind not in "biuf":
            raise ValueError(f"{entry.filename} holds {dtype}, not numbers")
        size = prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or size != entry.file_size - file.tell():
            raise ValueError(f"{entry.filename} is not as long as its header says")
        raw = file.read(size)
        file.read(1)  # at the end the checksum is compared
    return np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran else "C")
