"""Bits per byte of general compressors: the yardsticks beside which a model's bits mean something."""

from __future__ import annotations

import importlib.util
import io
import lzma
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, features

from .data import Images, Stream
from .formats.images import picture_of

# GCIDE's last 5%, given its first 90%: measured once with 7-Zip's PPMd and zpaq 7.15, which are not everywhere.
RECORDED = {"gcide.dict.dz": {"xz -9e": 1.789, "7z PPMd, o=16, 512 MB": 1.529, "zpaq -m5": 1.275}}
NOT_HERE = "recorded, given all of it: the tool is not here"


def stream(train: Stream, test: Stream, name: str, last: int | None = None) -> list[dict]:
    """Of the test split given the training split: the length of both compressed, less that of training alone.

    name: of the data's file; where a tool is missing, its figure for GCIDE is a recorded one. last: given only so many
    of the training split's bytes, its last.
    """
    given, rows = train.tokens[-last:] if last else train.tokens, []
    note = "here" if len(given) == len(train.tokens) else f"here, given the last {len(given):,} bytes alone"
    for tool, compressed in {
        "xz -9e": _xz,
        "7z PPMd, o=16, 512 MB": _seven_zip(),
        "zpaq -m5": _zpaq(),
    }.items():
        recorded = RECORDED.get(name, {}).get(tool)
        if compressed is not None:
            rows.append({"name": tool, "bits": _given(compressed, given, test.tokens), "note": note})
        elif recorded is not None:
            rows.append({"name": tool, "bits": recorded, "note": NOT_HERE})
    return rows


def _given(compressed: Callable[[bytes], int], train: np.ndarray, test: np.ndarray) -> float:
    with ThreadPoolExecutor(2) as pool:  # the compressors leave Python's lock alone
        both, alone = pool.map(compressed, (train.tobytes() + test.tobytes(), train.tobytes()))
    return (both - alone) * 8 / len(test)


def _xz(content: bytes) -> int:
    return len(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))


def _seven_zip() -> Callable[[bytes], int] | None:
    tool = next(filter(None, map(shutil.which, ("7z", "7zz", "7za"))), None)
    return tool and _archiver(tool, "a", "-m0=PPMd:o=16:mem=512m", "{archive}.7z", "{content}")


def _zpaq() -> Callable[[bytes], int] | None:
    tool = shutil.which("zpaq")
    return tool and _archiver(tool, "a", "{archive}.zpaq", "{content}", "-m5")


def _archiver(*words: str) -> Callable[[bytes], int]:
    """The length that the command's archive has. Raises ValueError where it makes none."""

    def compressed(content: bytes) -> int:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "content").write_bytes(content)
            command = [word.format(archive=folder / "archive", content=folder / "content") for word in words]
            result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            archives = list(folder.glob("archive.*"))
            if result.returncode or not archives:
                raise ValueError(
                    f"{' '.join(command)} ended with status {result.returncode}: {result.stderr}"
                )
            return archives[0].stat().st_size

    return compressed


JPEG_XL = "JPEG XL, lossless"
# Fashion-MNIST's first 1,000 test images by cjxl 0.7: a file each, one picture of all.
RECORDED_JPEG_XL = {"fashion": (3.946, 3.258)}
COUNT, COLUMNS = 1000, 25  # images that are compressed, and of these in a row of one picture of all


def images(source: Images, grid: tuple[int, ...], kind: str) -> list[dict]:
    """Of the split's first images: each a file of its own, and all of them one picture, which needs one header.

    kind: of the configuration's data; without a tool for JPEG XL its figures for Fashion-MNIST are recorded ones.
    """
    count = min(COUNT, source.size) // COLUMNS * COLUMNS or source.size
    tokens = source.examples(np.arange(count), 0).reshape(count, *grid)
    columns = COLUMNS if count % COLUMNS == 0 else 1
    height, width, channels = grid
    sheet = tokens.reshape(-1, columns, *grid).swapaxes(1, 2).reshape(-1, columns * width, channels)
    rows = []
    for name, length in _formats().items():
        alone = sum(length(picture_of(image)) for image in tokens) * 8 / tokens.size
        together = length(picture_of(sheet)) * 8 / tokens.size
        rows += _both(name, alone, together, f"{count:,} images")
    if JPEG_XL not in _formats() and kind in RECORDED_JPEG_XL:
        rows += _both(JPEG_XL, *RECORDED_JPEG_XL[kind], "recorded, 1,000 images: no tool for it is here")
    return rows


def _both(name: str, alone: float, together: float, note: str) -> list[dict]:
    return [
        {"name": f"{name}, a file each", "bits": alone, "note": note},
        {"name": f"{name}, one picture of all", "bits": together, "note": note},
    ]


def _formats() -> dict[str, Callable[[Image.Image], int]]:
    """Those that Pillow or a tool can write here."""
    found = {"PNG": lambda image: _saved(image, "PNG", optimize=True)}
    if features.check("webp"):
        found["WebP, lossless"] = lambda image: _saved(
            image.convert("RGB"), "WEBP", lossless=True, quality=100, method=6
        )
    if tool := shutil.which("cjxl"):
        archiver = _archiver(tool, "{content}", "{archive}.jxl", "-d", "0", "-e", "9")
        found[JPEG_XL] = lambda image: archiver(_png(image))
    elif importlib.util.find_spec("pillow_jxl"):
        import pillow_jxl  # noqa: F401  which teaches Pillow the format

        found[JPEG_XL] = lambda image: _saved(image, "JXL", lossless=True, effort=9)
    return found


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _saved(image: Image.Image, kind: str, **options) -> int:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.tell()
