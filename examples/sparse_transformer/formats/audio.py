"""Recordings as mu-law bytes at 12 kHz."""

from __future__ import annotations

import re
from math import gcd
from pathlib import Path

import numpy as np
import soundfile

from . import DataError, kinds

SAMPLE_RATE = 12_000  # paper, section 7.4
AUDIO = (
    "a .wav or .flac file, or a folder of such; the paper's classical music is the set of Dieleman et al. 2018, which "
    "is not public"
)
RATES = range(1_000, 400_000)  # Hz of recordings; a header that says otherwise is broken
UNKNOWN = 2**32 - 256  # a WAV file's length from here on means "not known yet": a pipe wrote it
MARKS = (b"RIFF", b"RIFX", b"RF64", b"fLaC")
DENSEST = 1_000  # frames a byte; FLAC codes silence in 4,096 frames of 14 bytes


def encode_mu_law(x: np.ndarray) -> np.ndarray:
    """[-1, 1] -> bytes: sign(x) ln(1 + 255 |x|) / ln 256, rounded to 256 levels."""
    companded = np.sign(x) * np.log1p(255 * np.abs(x)) / np.log(256)
    return np.round((companded + 1) * 127.5).astype(np.uint8)


def decode_mu_law(tokens: np.ndarray) -> np.ndarray:
    companded = tokens.astype(np.float64) / 127.5 - 1
    return np.sign(companded) * np.expm1(np.abs(companded) * np.log(256)) / 255


def read_recording(path: Path) -> np.ndarray:
    """One WAV or FLAC file as mu-law bytes [length], channels averaged, at 12 kHz."""
    from scipy.signal import resample_poly  # takes a second, which commands without audio need not wait for

    with path.open("rb") as start:
        if start.read(4) not in MARKS:  # libsndfile reads much else, some of it with a noise of its own
            raise DataError(path, "not a WAV or FLAC file", AUDIO)
    try:
        with soundfile.SoundFile(path) as file:
            if file.samplerate not in RATES:
                raise DataError(path, f"its header says {file.samplerate:,} Hz", AUDIO)
            x = _mono(path, file)
            lengths = re.search(r"^data : (\d+) \(should be (\d+)\)", file.extra_info, re.MULTILINE)
    except soundfile.SoundFileError as error:
        reason = getattr(error, "error_string", error)
        raise DataError(path, f"not a WAV or FLAC file that can be read ({reason})", AUDIO) from error
    if lengths and int(lengths[1]) < UNKNOWN:
        raise DataError(path, f"cut short: {int(lengths[2]):,} of {int(lengths[1]):,} bytes", AUDIO)
    if not np.isfinite(x).all():
        raise DataError(path, "holds samples that are no numbers", AUDIO)
    common = gcd(file.samplerate, SAMPLE_RATE)
    heard = resample_poly(x, SAMPLE_RATE // common, file.samplerate // common)
    return encode_mu_law(np.clip(heard, -1, 1))


def _mono(path: Path, file: soundfile.SoundFile) -> np.ndarray:
    """Float64 [frames]. Read in blocks until there are no more, as the number of frames in a header may be anything."""
    limit = DENSEST * path.stat().st_size
    size = max(1, 2**16 // file.channels)
    blocks = [np.zeros(0)]
    while len(block := file.read(size, always_2d=True)):
        blocks.append(block.mean(axis=1))
        limit -= len(block)
        if limit < 0:
            raise DataError(path, f"unpacks to more than {DENSEST:,} frames a byte", AUDIO)
    return np.concatenate(blocks)


def read_audio(path: Path) -> np.ndarray:
    """One recording, or every one below a folder, one after the other, as mu-law bytes [length]."""
    if path.is_file():
        files = [path] if kinds.repair("audio", path) is None else []
    else:
        files = [file for file in sorted(path.rglob("*")) if kinds.kind_of(file) == "recording"]
    if not files:
        missing = "no folder with .wav or .flac files" if path.exists() else "no such file or folder"
        raise DataError(path, kinds.repair("audio", path) or missing, AUDIO)
    return np.concatenate([read_recording(file) for file in files])
