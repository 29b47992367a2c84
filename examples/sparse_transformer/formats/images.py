"""CIFAR-10, downsampled ImageNet, and folders of one's own pictures: uint8 [images, 3, side, side]."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np

from . import DataError, kinds
from .cifar_pickle import load_batch
from .npz import read_npz

CIFAR10 = (
    "CIFAR-10's python or binary version, as a .tar.gz or unpacked (https://www.cs.toronto.edu/~kriz/cifar.html), or a "
    "folder of PNG or JPEG files"
)
IMAGENET64 = (
    "the folder with train_data_batch_1.npz to train_data_batch_10.npz and val_data.npz of downsampled ImageNet 64x64 "
    "(https://image-net.org/download-images), one of these files, or a folder of PNG or JPEG files"
)
PICTURES = "a folder of PNG or JPEG files, one such .npz batch of ImageNet 64x64, or a data set of the paper"
LARGEST = 1 << 29  # bytes of CIFAR-10's archive, unpacked; the real one has 186 MB
BATCH = 1 << 26  # bytes of one of its files; the real ones have 31 MB
PIXELS = 1 << 26  # of one picture
ARCHIVE_DAMAGE = (tarfile.TarError, EOFError, OSError, ValueError, OverflowError, struct.error, zlib.error)


class _Limited(io.RawIOBase):
    """Reads of a stream, up to LARGEST bytes in all: a few bytes of gzip may unpack to anything."""

    def __init__(self, stream):
        self.stream, self.left = stream, LARGEST

    def read(self, size: int = -1) -> bytes:
        data = self.stream.read(min(size, self.left + 1) if size >= 0 else self.left + 1)
        self.left -= len(data)
        if self.left < 0:
            raise ValueError(f"unpacks to more than {LARGEST:,} bytes")
        return data


class _Member(tarfile.TarInfo):
    @classmethod
    def frombuf(cls, buf, encoding, errors):
        """A header, of a file or of what describes one, which is read whole."""
        member = super().frombuf(buf, encoding, errors)
        if not 0 <= member.size <= BATCH:
            raise ValueError(f"{member.name} is of {member.size:,} bytes")
        return member


def _archive_members(path: Path) -> dict[str, bytes]:
    members = {}
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        stream = gzip.GzipFile(fileobj=file) if packed else file
        with tarfile.open(fileobj=_Limited(stream), mode="r|", tarinfo=_Member) as archive:
            for member in archive:
                if not member.isfile() or "_batch" not in member.name:
                    continue
                if not 0 <= member.size <= BATCH:  # an extended header may have said otherwise
                    raise ValueError(f"{member.name} is of {member.size:,} bytes")
                members[Path(member.name).name] = archive.extractfile(member).read()
    return members


def _members(path: Path) -> dict[str, bytes]:
    """Contents of a .tar.gz or folder, by file name."""
    if path.is_dir():
        return {file.name: file.read_bytes() for file in sorted(path.rglob("*_batch*")) if file.is_file()}
    return _archive_members(path)


def _cifar10_batch(name: str, raw: bytes) -> np.ndarray:
    if name.endswith(".bin"):
        return np.frombuffer(raw, np.uint8).reshape(10_000, 3073)[:, 1:]  # a label, then three planes
    return load_batch(raw)


def read_cifar10(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(training, test) images, uint8 [50000, 3, 32, 32] and [10000, 3, 32, 32]."""
    if not path.exists():
        raise DataError(path, "no such file or folder", CIFAR10)
    try:
        members = _members(path)
    except ARCHIVE_DAMAGE as error:
        raise DataError(path, f"cannot be read ({error})", CIFAR10) from error
    suffix = ".bin" if "test_batch.bin" in members else ""
    batches = []
    for name in [*(f"data_batch_{i}{suffix}" for i in range(1, 6)), f"test_batch{suffix}"]:
        if name not in members:
            raise DataError(path, f"{name} is missing", CIFAR10)
        try:
            batches.append(_cifar10_batch(name, members[name]))
        except ValueError as error:
            raise DataError(path, f"{name} is damaged or no CIFAR-10 batch ({error})", CIFAR10) from error
    images = np.concatenate(batches).reshape(-1, 3, 32, 32)
    return images[:50_000], images[50_000:]


def read_batch(path: Path) -> np.ndarray:
    """One .npz batch of ImageNet 64x64."""
    if not path.is_file():
        raise DataError(path, "no such file", IMAGENET64)
    try:
        data = read_npz(path, names=("data",))["data"]
    except ValueError as error:
        problem = f"cannot be read as an npz file with an array `data` ({error})"
        raise DataError(path, problem, IMAGENET64) from error
    if data.ndim != 2 or data.shape[1] != 3 * 64 * 64 or data.dtype != np.uint8:
        problem = f"`data` is {data.dtype} {list(data.shape)} instead of uint8 [images, 12288]"
        raise DataError(path, problem, IMAGENET64)
    return data.reshape(-1, 3, 64, 64)


def read_imagenet64(path: Path, training: bool) -> list[np.ndarray]:
    """The batches of the training set, or the validation set, uint8 [images, 3, 64, 64] each (16 GB in all)."""
    if not path.is_dir():
        raise DataError(path, "no such folder", IMAGENET64)
    names = [f"train_data_batch_{i}.npz" for i in range(1, 11)] if training else ["val_data.npz"]
    return [read_batch(path / name) for name in names]


def has_pictures(path: Path) -> bool:
    """Whether the path is a folder of pictures rather than of batches. Raises DataError for kinds nobody reads."""
    if path.is_dir():
        if any(path.rglob("*_batch*")) or any(path.rglob("*_data*.npz")):
            return False
        if _pictures(path):
            return True
    if path.exists() and (problem := kinds.repair("images", path)):
        raise DataError(path, problem, PICTURES)
    return False


def _pictures(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.rglob("*")) if kinds.kind_of(file) == "picture"]


def read_pictures(path: Path, side: int) -> np.ndarray:
    """Every PNG and JPEG file below the folder, in the order of their names: the square in its middle, scaled."""
    return np.stack([read_picture(file, side, side) for file in _pictures(path)]).transpose(0, 3, 1, 2)


def read_picture(path: Path, height: int, width: int, channels: int = 3) -> np.ndarray:
    """uint8 [height, width, channels]: what of the picture's middle has this shape, scaled; grey for 1 channel."""
    from PIL import Image, UnidentifiedImageError

    try:
        # From memory: a file would be asked for as many bytes as a chunk says that it has, and room made for them.
        with Image.open(io.BytesIO(path.read_bytes()), formats=("PNG", "JPEG")) as image:
            columns, rows = image.size
            if rows * columns > PIXELS:
                raise ValueError(f"its header says {columns:,} x {rows:,} pixels")
            scale = min(rows / height, columns / width)
            left, top = (columns - scale * width) / 2, (rows - scale * height) / 2
            box = (left, top, left + scale * width, top + scale * height)
            scaled = image.convert("L" if channels == 1 else "RGB").resize(
                (width, height), Image.Resampling.BOX, box
            )
    except Exception as error:  # decoders fail in ways of their own on damaged files
        why = "it is neither" if isinstance(error, UnidentifiedImageError) else error
        raise DataError(path, f"not a PNG or JPEG file that can be read ({why})", PICTURES) from error
    return np.asarray(scaled).reshape(height, width, channels)


def picture_of(pixels: np.ndarray):
    """uint8 [height, width, channels] -> Pillow's picture, a grey one where there is one channel."""
    from PIL import Image

    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
