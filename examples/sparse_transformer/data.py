"""The kinds of data, their splits, and examples of them by number."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import toy_data
from .config import SPLITS, Config
from .formats import DataError, audio, idx, images, text


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

    batches: list[np.ndarray]  # uint8 [images, channels, side, side] each
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


Source = Stream | Images | Crops


def _stream(tokens: np.ndarray, config: Config, path) -> dict[str, Source]:
    """90% trains, 5% validates, 5% tests, as is usual for enwik8: 90M, 5M and 5M bytes."""
    ends = [len(tokens) * percent // 100 for percent in (90, 95)]
    parts = np.split(tokens, ends)
    if min(map(len, parts)) < config.n_ctx:
        wanted = (
            f"at least {20 * config.n_ctx:,} tokens, so that 5% of them hold one context of {config.n_ctx:,}"
        )
        raise DataError(path or "built-in data", f"only {len(tokens):,} tokens", wanted)
    return {split: Stream(part, config.n_ctx) for split, part in zip(SPLITS, parts, strict=True)}


def _shares(images: np.ndarray, path) -> dict[str, Source]:
    """90%, 5% and 5% of a set of images that has no splits of its own."""
    if len(images) < 20:
        raise DataError(
            path, f"only {len(images)} images", "at least 20, of which one validates and one tests"
        )
    ends = [len(images) * percent // 100 for percent in (90, 95)]
    chosen = np.split(np.random.RandomState(_SHUFFLE).permutation(len(images)), ends)
    return {split: Images([images], numbers) for split, numbers in zip(SPLITS, chosen, strict=True)}


_SHUFFLE = 11172018  # the authors' later code splits CIFAR-10 by scikit-learn's train_test_split with this random_state


def _cifar10(path: Path) -> dict[str, Source]:
    """48,000 / 2,000 / 10,000, drawn as the authors' later code does."""
    train, test = images.read_cifar10(path)
    order = np.random.RandomState(_SHUFFLE).permutation(len(train))
    return {
        "train": Images([train], order[2_000:]),
        "valid": Images([train], order[:2_000]),
        "test": Images([test], np.arange(len(test))),
    }


def _fashion(path: Path, splits: tuple[str, ...]) -> dict[str, Source]:
    """57,000 / 3,000 of the training images, drawn as CIFAR-10's are, and the 10,000 official test images."""
    found: dict[str, Source] = {}
    if "test" in splits:
        test = idx.read_fashion(path, training=False)
        found["test"] = Images([test], np.arange(len(test)))
    if set(splits) - {"test"}:
        train = idx.read_fashion(path, training=True)
        order = np.random.RandomState(_SHUFFLE).permutation(len(train))
        found["train"] = Images([train], order[3_000:])
        found["valid"] = Images([train], order[:3_000])
    return found


def _imagenet64(path: Path, splits: tuple[str, ...]) -> dict[str, Source]:
    """The paper evaluates on the official validation set, here `test`; 50,018 of 1,281,167 training images validate."""
    found: dict[str, Source] = {}
    if "test" in splits:
        batches = images.read_imagenet64(path, training=False)
        found["test"] = Images(batches, np.arange(sum(map(len, batches))))
    if set(splits) - {"test"}:
        batches = images.read_imagenet64(path, training=True)
        total = sum(map(len, batches))
        held = max(1, total * 50_018 // 1_281_167)
        found["train"] = Images(batches, np.arange(total - held))
        found["valid"] = Images(batches, np.arange(total - held, total))
    return found


def _crops(side: int) -> dict[str, Source]:
    """The left four fifths of the photographs train, the rest validates and tests."""
    parts = [
        np.split(p, [p.shape[1] * 8 // 10, p.shape[1] * 9 // 10], axis=1) for p in toy_data.photographs()
    ]
    return {split: Crops([part[i] for part in parts], side) for i, split in enumerate(SPLITS)}


def _images(config: Config, path: Path, splits: tuple[str, ...]) -> dict[str, Source]:
    side = config.grid[0]
    if images.has_pictures(path):
        return _shares(images.read_pictures(path, side), path)
    own = 32 if config.data == "cifar10" else 64
    if side != own:
        raise DataError(path, f"images of {own} x {own} for grid={config.grid}", f"grid=({own}, {own}, 3)")
    if path.is_file() and config.data == "imagenet64":
        return _shares(images.read_batch(path), path)
    return _cifar10(path) if config.data == "cifar10" else _imagenet64(path, splits)


def load_splits(config: Config, path: str | None, splits: tuple[str, ...] = SPLITS) -> dict[str, Source]:
    """These splits of the data set at `path`, or of built-in data of the same kind; read once for all of them."""
    if config.data == "text":
        tokens = text.read_text(Path(path)) if path else toy_data.python_source()
        found = _stream(tokens, config, path)
    elif config.data == "audio":
        seconds = max(240, 24 * config.n_ctx / audio.SAMPLE_RATE)
        tokens = audio.read_audio(Path(path)) if path else toy_data.melody(seconds)
        found = _stream(tokens, config, path)
    elif config.data == "fashion":
        if not path:
            raise DataError("--data", "Fashion-MNIST is not built in", idx.FASHION)
        if config.grid != (28, 28, 1):
            raise DataError(path, f"images of 28 x 28 for grid={config.grid}", "grid=(28, 28, 1)")
        found = _fashion(Path(path), splits)
    else:
        found = _images(config, Path(path), splits) if path else _crops(config.grid[0])
    return {split: found[split] for split in splits}


def beginning(source: Source, tokens: int) -> Stream:
    """The first tokens of a stream. Raises ValueError where there are no such, or not one context of them."""
    if not isinstance(source, Stream):
        raise ValueError(f"--tokens {tokens}: images are scored whole; take --limit")
    if not source.n_ctx <= tokens <= len(source.tokens):
        raise ValueError(
            f"--tokens {tokens} has to lie between the model's context, {source.n_ctx:,}, and the split's "
            f"{len(source.tokens):,} tokens"
        )
    return Stream(source.tokens[:tokens], source.n_ctx)


def load(config: Config, path: str | None = None, split: str = "train") -> Source:
    """One split, as load_splits has it."""
    if split not in SPLITS:
        raise ValueError(f"split={split!r}; choose one of {', '.join(SPLITS)}")
    return load_splits(config, path, (split,))[split]
