"""What a sample begins with, and how long it gets."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from .config import Config
from .formats import DataError, audio, images


def read_prompt(config: Config, prompt: str | None, seconds: float) -> np.ndarray:
    """The tokens [length] that a sample begins with: a text, an image's upper half, the start of a recording."""
    if prompt is None:
        return np.zeros(0, np.uint8)
    if config.data == "text":
        return np.frombuffer(os.fsencode(prompt), np.uint8)  # bytes that are no UTF-8 as well
    if not Path(prompt).is_file():
        raise ValueError(
            f"--prompt {prompt}: no such file; give a PNG or JPEG image for images, a .wav or .flac file for audio"
        )
    if config.data == "audio":
        return audio.read_recording(Path(prompt))[: round(seconds * audio.SAMPLE_RATE)]
    height, width, channels = config.grid
    try:
        picture = images.read_picture(Path(prompt), height, width, channels)
    except DataError as error:  # which names what a data set may be
        raise ValueError(f"--prompt {prompt}: {error.problem}") from error
    return picture[: height // 2].reshape(-1)


def length_of(config: Config, prompt: np.ndarray, length: int | None) -> int:
    """Tokens of a sample: the model's context where none is given."""
    length = config.n_ctx if length is None else length
    if not len(prompt) < length <= config.n_ctx:
        raise ValueError(
            f"--length {length} must exceed the prompt's {len(prompt)} tokens, and at most be the model's "
            f"context, {config.n_ctx}"
        )
    return length
