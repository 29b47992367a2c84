"""CIFAR-10 and downsampled ImageNet."""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np

from . import DataError

CIFAR10 = "CIFAR-10's python or binary version, as a .tar.gz or unpacked: https://www.cs.toronto.edu/~kriz/cifar.html"
IMAGENET64 = (
    "the folder with train_data_batch_1.npz to train_data_batch_10.npz and val_data.npz of downsampled ImageNet 64x64: "
    "https://image-net.org/download-images"
)


class _ArrayUnpickler(pickle.Unpickler):
    """CIFAR's pickles hold NumPy arrays and plain values; nothing else is loaded from a file of unknown origin."""

    def find_class(self, module, name):
        if module.startswith(("numpy", "_codecs")) and name in ("_reconstruct", "ndarray", "dtype", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in CIFAR-10")


def _cifar10_batch(name: str, raw: bytes) -> np.ndarray:
    if name.endswith(".bin"):
        return np.frombuffer(raw, np.uint8).reshape(10_000, 3073)[:, 1:]  # a label, then three planes
    return np.asarray(_ArrayUnpickler(io.BytesIO(raw), encoding="bytes").load()[b"data"], np.uint8).reshape(
        10_000, 3072
    )


def _members(path: Path) -> dict[str, bytes]:
    """Contents of a .tar.gz or folder, by file name."""
    if path.is_dir():
        return {file.name: file.read_bytes() for file in sorted(path.rglob("*_batch*"))}
    with tarfile.open(path) as archive:
        files = [member for member in archive if member.isfile() and "_batch" in member.name]
        return {Path(member.name).name: archive.extractfile(member).read() for member in files}


def read_cifar10(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(training, test) images, uint8 [50000, 3, 32, 32] and [10000, 3, 32, 32]."""
    if not path.exists():
        raise DataError(path, "no such file or folder", CIFAR10)
    try:
        members = _members(path)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(path, f"cannot be read ({error})", CIFAR10) from error
    suffix = ".bin" if "test_batch.bin" in members else ""
    batches = []
    for name in [*(f"data_batch_{i}{suffix}" for i in range(1, 6)), f"test_batch{suffix}"]:
        if name not in members:
            raise DataError(path, f"{name} is missing", CIFAR10)
        try:
            batches.append(_cifar10_batch(name, members[name]))
        except (ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
            raise DataError(path, f"{name} is damaged or no CIFAR-10 batch ({error})", CIFAR10) from error
    images = np.concatenate(batches).reshape(-1, 3, 32, 32)
    return images[:50_000], images[50_000:]


def _npz_images(path: Path) -> np.ndarray:
    if not path.is_file():
        raise DataError(path, "no such file", IMAGENET64)
    try:
        with np.load(path) as batch:
            data = batch["data"]
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(
            path, f"cannot be read as an npz file with an array `data` ({error})", IMAGENET64
        ) from error
    if data.ndim != 2 or data.shape[1] != 3 * 64 * 64 or data.dtype != np.uint8:
        raise DataError(
            path, f"`data` is {data.dtype} {list(data.shape)} instead of uint8 [images, 12288]", IMAGENET64
        )
    return data.reshape(-1, 3, 64, 64)


def read_imagenet64(path: Path, training: bool) -> list[np.ndarray]:
    """The batches of the training set, or the validation set, uint8 [images, 3, 64, 64] each (16 GB in all)."""
    if not path.is_dir():
        raise DataError(path, "no such folder", IMAGENET64)
    names = [f"train_data_batch_{i}.npz" for i in range(1, 11)] if training else ["val_data.npz"]
    return [_npz_images(path / name) for name in names]
