"""Reads the data sets of the paper from the files they come in. Nothing is downloaded."""

from __future__ import annotations

import io
import pickle
import tarfile
import wave
import zipfile
from math import gcd
from pathlib import Path

import numpy as np
from scipy.signal import resample_poly

SAMPLE_RATE = 12_000  # paper, section 7.4
ENWIK8 = "the first 10^8 bytes of a Wikipedia dump, http://mattmahoney.net/dc/enwik8.zip, unpacked"
CIFAR10 = "CIFAR-10's python or binary version, as a .tar.gz or unpacked: https://www.cs.toronto.edu/~kriz/cifar.html"
IMAGENET64 = (
    "the folder with train_data_batch_1.npz to train_data_batch_10.npz and val_data.npz of downsampled ImageNet 64x64: "
    "https://image-net.org/download-images"
)
AUDIO = "a folder of .wav files; the paper's classical music is the set of Dieleman et al. 2018, which is not public"


class DataError(ValueError):
    """A file that is missing, cut short or something else."""

    def __init__(self, path, problem: str, wanted: str):
        super().__init__(f"{path}: {problem}. Wanted: {wanted}")


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


def encode_mu_law(x: np.ndarray) -> np.ndarray:
    """[-1, 1] -> bytes: sign(x) ln(1 + 255 |x|) / ln 256, rounded to 256 levels."""
    companded = np.sign(x) * np.log1p(255 * np.abs(x)) / np.log(256)
    return np.round((companded + 1) * 127.5).astype(np.uint8)


def decode_mu_law(tokens: np.ndarray) -> np.ndarray:
    companded = tokens.astype(np.float64) / 127.5 - 1
    return np.sign(companded) * np.expm1(np.abs(companded) * np.log(256)) / 255


def read_wav(path: Path) -> np.ndarray:
    """One file as mu-law bytes [length], channels averaged, at 12 kHz."""
    try:
        with wave.open(str(path)) as file:
            frames, width, channels, rate = (
                file.getnframes(), file.getsampwidth(), file.getnchannels(), file.getframerate()
            )  # fmt: skip
            raw = file.readframes(frames)
    except (wave.Error, EOFError) as error:
        raise DataError(path, f"not a PCM WAV file ({error})", AUDIO) from error
    if len(raw) != frames * width * channels:
        raise DataError(path, f"cut short: {len(raw):,} of {frames * width * channels:,} bytes", AUDIO)
    data = np.frombuffer(raw, np.uint8).reshape(frames, channels, width)
    if width == 1:  # unsigned, alone among the widths
        x = data[..., 0] / 127.5 - 1
    else:  # little endian: the bytes fill an int32 from above
        padded = np.zeros((frames, channels, 4), np.uint8)
        padded[..., 4 - width :] = data
        x = padded.view("<i4")[..., 0] / 2**31
    common = gcd(rate, SAMPLE_RATE)
    return encode_mu_law(np.clip(resample_poly(x.mean(axis=1), SAMPLE_RATE // common, rate // common), -1, 1))


def read_audio(path: Path) -> np.ndarray:
    """Every .wav file below the folder, one after the other, as mu-law bytes [length]."""
    files = sorted(path.rglob("*.wav")) if path.is_dir() else []
    if not files:
        raise DataError(path, "no folder with .wav files", AUDIO)
    return np.concatenate([read_wav(file) for file in files])
