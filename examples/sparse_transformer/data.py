"""The four kinds of data, their splits, and examples of them by number."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import toy_data
from .config import SPLITS, Config
from .formats import DataError, audio, images, text


@dataclass(frozen=True)
class Stream:
    """One long sequence of bytes, cut into windows; each epoch cuts elsewhere."""

    tokens: np.ndarray  # uint8 [length]
    n_ctx: int

    @property
    def size(self) -> int:
        return max(1, len(self.tokens) // self.n_ctx - 1)  # room for the shift

    def examples(self, index: np.ndarray, shift: int) -> np.ndarray:
        room = len(self.tokens) - self.n_ctx + 1
        starts = (index * self.n_ctx + shift % self.n_ctx) % room
        return np.stack([self.tokens[start : start + self.n_ctx] for start in starts])


@dataclass(frozen=True)
class Images:
    """Images stored as planes; an example is row, column, channel (paper, section 5.3)."""

    batches: list[np.ndarray]  # uint8 [images, 3, side, side] each
    chosen: np.ndarray  # numbers of this split's images

    @property
    def size(self) -> int:
        return len(self.chosen)

    def examples(self, index: np.ndarray, shift: int) -> np.ndarray:
        ends = np.cumsum([len(batch) for batch in self.batches])
        which = np.searchsorted(ends, self.chosen[index], side="right")
        images = [self.batches[w][i - ends[w]] for w, i in zip(which, self.chosen[index], strict=True)]
        return np.stack(images).transpose(0, 2, 3, 1).reshape(len(index), -1)


@dataclass(frozen=True)
class Crops:
    """Squares cut out of photographs."""

    photographs: list[np.ndarray]  # uint8 [height, width, 3], all the same size
    side: int

    @property
    def places(self) -> tuple[int, int, int]:
        height, width, _ = self.photographs[0].shape
        return len(self.photographs), height - self.side + 1, width - self.side + 1

    @property
    def size(self) -> int:
        return int(np.prod(self.places))

    def examples(self, index: np.ndarray, shift: int) -> np.ndarray:
        crops = []
        for photograph, y, x in zip(*np.unravel_index(index, self.places), strict=True):
            crops.append(self.photographs[photograph][y : y + self.side, x : x + self.side])
        return np.stack(crops).reshape(len(index), -1)


def _stream(tokens: np.ndarray, config: Config, split: str, path) -> Stream:
    """90% trains, 5% validates, 5% tests, as is usual for enwik8: 90M, 5M and 5M bytes."""
    ends = [len(tokens) * percent // 100 for percent in (90, 95)]
    part = np.split(tokens, ends)[SPLITS.index(split)]
    if len(part) < config.n_ctx:
        wanted = (
            f"at least {20 * config.n_ctx:,} tokens, so that 5% of them hold one context of {config.n_ctx:,}"
        )
        raise DataError(path or "built-in data", f"only {len(tokens):,} tokens", wanted)
    return Stream(part, config.n_ctx)


def _cifar10(path: Path, split: str) -> Images:
    """48,000 / 2,000, drawn as the authors' later code does: scikit-learn's train_test_split, this random_state."""
    train, test = images.read_cifar10(path)
    if split == "test":
        return Images([test], np.arange(len(test)))
    order = np.random.RandomState(11172018).permutation(len(train))
    return Images([train], order[2_000:] if split == "train" else order[:2_000])


def _imagenet64(path: Path, split: str) -> Images:
    """The paper evaluates on the official validation set, here `test`; 50,018 of 1,281,167 training images validate."""
    batches = images.read_imagenet64(path, training=split != "test")
    total = sum(len(batch) for batch in batches)
    held = max(1, total * 50_018 // 1_281_167)
    chosen = {
        "train": np.arange(total - held),
        "valid": np.arange(total - held, total),
        "test": np.arange(total),
    }
    return Images(batches, chosen[split])


def _crops(side: int, split: str) -> Crops:
    """The left four fifths of the photographs train, the rest validates and tests."""
    parts = [
        np.split(p, [p.shape[1] * 8 // 10, p.shape[1] * 9 // 10], axis=1) for p in toy_data.photographs()
    ]
    return Crops([part[SPLITS.index(split)] for part in parts], side)


def load(config: Config, path: str | None = None, split: str = "train") -> Stream | Images | Crops:
    """Opens one split of the data set at `path`, or of built-in data of the same kind."""
    if split not in SPLITS:
        raise ValueError(f"split={split!r}; choose one of {', '.join(SPLITS)}")
    if config.data == "text":
        tokens = text.read_text(Path(path)) if path else toy_data.python_source()
        return _stream(tokens, config, split, path)
    if config.data == "audio":
        seconds = max(240, 24 * config.n_ctx / audio.SAMPLE_RATE)
        tokens = audio.read_audio(Path(path)) if path else toy_data.melody(seconds)
        return _stream(tokens, config, split, path)
    if not path:
        return _crops(config.grid[0], split)
    return (_cifar10 if config.data == "cifar10" else _imagenet64)(Path(path), split)
