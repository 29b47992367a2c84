"""The data set that a run learns, noted in data.json so that resuming and evaluating take the same one."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path

from . import toy_data
from .config import Config
from .runs import PRETRAINED, read_json, write_json

NAME = "data.json"
PIECE = 1 << 20  # bytes of a file that go into the digest, at its beginning, its middle and its end


@dataclass(frozen=True)
class Origin:
    """path: of the file or folder, None for built-in data; size: in bytes; digest: of names, sizes and pieces."""

    path: str | None
    size: int
    digest: str

    def __str__(self) -> str:
        name = self.path or "built-in data"
        return f"{name} ({self.size:,} bytes, digest {self.digest[:8]})" if self.size else name

    def same(self, other: Origin) -> bool:
        """Whether it is the same data, wherever it lies."""
        return (self.size, self.digest) == (other.size, other.digest)


def measure(config: Config, path: str | None) -> Origin:
    """The data set at `path` as it is now, or the built-in one of this kind."""
    if path is None:
        return _built_in(config)
    root = Path(path)
    files = sorted(file for file in root.rglob("*") if file.is_file()) if root.is_dir() else [root]
    digest, total = hashlib.sha256(), 0
    for file in files:
        size = file.stat().st_size
        name = str(file.relative_to(root)) if root.is_dir() else ""
        digest.update(f"{name}\0{size}\0".encode())
        with file.open("rb") as opened:
            for start in (0, max(0, size // 2 - PIECE // 2), max(0, size - PIECE)):
                opened.seek(start)
                digest.update(opened.read(PIECE))
        total += size
    return Origin(str(root.resolve()), total, digest.hexdigest())


def _built_in(config: Config) -> Origin:
    if config.data == "text":  # differs between versions of Python; the others are the same everywhere
        source = toy_data.python_source()
        return Origin(None, len(source), hashlib.sha256(source).hexdigest())
    return Origin(None, 0, hashlib.sha256(config.data.encode()).hexdigest())


def read(folder: Path) -> Origin | None:
    """What the run has noted, or None: runs of earlier versions have no data.json."""
    path = folder / NAME
    if not path.exists():
        return None
    wanted = "the path, size and digest that examples/train.py writes"
    fields = read_json(path, wanted)
    kinds = {"path": (str, type(None)), "size": (int,), "digest": (str,)}
    if (
        not isinstance(fields, dict)
        or fields.keys() != kinds.keys()
        or not all(isinstance(fields[name], kind) for name, kind in kinds.items())
    ):
        raise ValueError(f"{path} is damaged; wanted: {wanted}")
    return Origin(**fields)


def write(folder: Path, origin: Origin) -> None:
    write_json(folder / NAME, asdict(origin))


def path_of(folder: Path, given: str | None) -> str | None:
    """Where the run's data is: what --data says, else what the run has noted."""
    noted = read(folder)
    if given is not None or noted is None or noted.path is None:
        return given
    if Path(noted.path).exists():
        return noted.path
    if folder.parent == PRETRAINED:
        gets = read_json(folder / "card.json", "the commands that made it")["commands"][0]
        raise ValueError(f"{folder} learnt {noted}, which is not here: {gets}; or give --data its place")
    raise ValueError(
        f"{folder} was trained on {noted}, which is gone from there; give --data the place where it is now"
    )


def check(folder: Path, config: Config, path: str | None) -> Origin:
    """The data set at `path`. Raises ValueError where the run has noted another one."""
    noted, found = read(folder), measure(config, path)
    if noted is not None and not noted.same(found):
        raise ValueError(
            f"{folder} was trained on {noted}, and {found} is another data set; give --data the one that it was "
            "trained on"
        )
    return found
