"""Images that a model has completed, beside what it was given and what they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .files import replacing
from .formats.images import picture_of

GAP, SCALE, WHITE, UNKNOWN = 4, 2, 255, 160


def picture(grid: tuple[int, ...], original: np.ndarray, tokens: np.ndarray, given: int, out: Path) -> None:
    """Writes a PNG: original [count, n_ctx] and tokens [count, length] in columns, given, completed and original."""
    known = np.full_like(original, UNKNOWN)
    known[:, :given] = original[:, :given]
    completed = np.full_like(original, UNKNOWN)
    completed[:, : tokens.shape[1]] = tokens
    rows = [_row(images.reshape(-1, *grid)) for images in (known, completed, original)]
    pixels = np.concatenate([part for row in rows for part in (row, _gap(row, axis=0))][:-1], axis=0)
    pixels = pixels.repeat(SCALE, axis=0).repeat(SCALE, axis=1)
    with replacing(out) as file:
        picture_of(pixels).save(file, "PNG", optimize=True)


def _row(images: np.ndarray) -> np.ndarray:
    """uint8 [count, height, width, channels] -> [height, all of them wide, channels]."""
    parts = [part for image in images.astype(np.uint8) for part in (image, _gap(image, axis=1))]
    return np.concatenate(parts[:-1], axis=1)


def _gap(like: np.ndarray, axis: int) -> np.ndarray:
    shape = list(like.shape)
    shape[axis] = GAP
    return np.full(shape, WHITE, np.uint8)
