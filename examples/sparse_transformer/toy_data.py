"""What the commands train on when no data is given: data of each kind that every machine has or can make."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from .formats.audio import SAMPLE_RATE, encode_mu_law


def python_source() -> np.ndarray:
    """The Python standard library's own source text [length]."""
    root = Path(os.__file__).parent
    files = [f for f in sorted(root.rglob("*.py")) if not {"site-packages", "test", "tests"} & set(f.parts)]
    return np.frombuffer(b"".join(file.read_bytes() for file in files), np.uint8)


def photographs() -> list[np.ndarray]:
    """The two photographs that scikit-learn ships, uint8 [427, 640, 3]."""
    from sklearn.datasets import load_sample_images

    return load_sample_images().images


def melody(seconds: float) -> np.ndarray:
    """Chords with a melody over them, random but the same every time, as mu-law bytes at 12 kHz."""
    rng = np.random.default_rng(0)
    beat = SAMPLE_RATE // 4
    time = np.arange(4 * beat) / SAMPLE_RATE
    scale = np.array([0, 2, 4, 5, 7, 9, 11])

    def tone(degree, length):  # a plucked string: harmonics that die away
        octave, step = divmod(degree, 7)
        pitch = 220 * 2 ** (octave + scale[step] / 12)
        t = time[:length]
        return sum(np.sin(2 * np.pi * pitch * k * t) * np.exp(-(2 + k) * t) / k**2 for k in (1, 2, 3, 4))

    bars = []
    for _ in range(int(np.ceil(seconds * SAMPLE_RATE / len(time)))):
        root = rng.choice([0, 3, 4, 5])
        bar = sum(tone(root + degree, 4 * beat) for degree in (0, 2, 4))
        bar = bar + np.concatenate([tone(7 + root + rng.integers(5), beat) for _ in range(4)])
        bars.append(0.2 * bar)
    return encode_mu_law(np.clip(np.concatenate(bars), -1, 1))
