"""Gets a data set that Debian packages: on Debian and Ubuntu by apt-get, elsewhere it says what to do.

python examples/fetch.py fashion --out data/fashion    # Fashion-MNIST, 31 MB: 60,000 and 10,000 grey images, MIT
python examples/fetch.py gcide --out data/gcide        # GCIDE, 14 MB: a dictionary of English, 40 MB of text, GPL

python examples/train.py fashion --data data/fashion
python examples/train.py gcide --data data/gcide/gcide.dict.dz

Nothing is installed: the package is downloaded, unpacked in a folder of its own, and its data moved to --out.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from sparse_transformer import command
from sparse_transformer.files import no_folder


@dataclass(frozen=True)
class Package:
    """A Debian package and those of its files that are wanted, under the folder that it installs them to."""

    name: str
    folder: str
    files: tuple[str, ...]

    def missing(self, folder: Path) -> list[str]:
        return [file for file in self.files if not (folder / file).is_file()]


PACKAGES = {
    "fashion": Package(
        "dataset-fashion-mnist",
        "usr/share/datasets/fashion-mnist",
        ("train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.gz"),
    ),
    "gcide": Package("dict-gcide", "usr/share/dictd", ("gcide.dict.dz",)),
}


def by_hand(package: Package, out: Path) -> str:
    """What to do where there is no apt-get."""
    return (
        f"download the .deb at https://packages.debian.org/stable/{package.name}, unpack it (ar x, then tar xf "
        f"data.tar.xz) and copy {' and '.join(package.files)} of its {package.folder} to {out}"
    )


def run(words: list[str], folder: Path) -> None:
    """Raises ValueError with the command and the last line it wrote, where it fails."""
    result = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    if result.returncode:
        said = (result.stderr.strip() or result.stdout.strip() or f"status {result.returncode}").splitlines()
        raise ValueError(f"{' '.join(words)}: {said[-1]}")


def download(package: Package, out: Path) -> None:
    """Puts the package's files into `out`. Raises ValueError that says how else to get them, where that fails."""
    absent = [tool for tool in ("apt-get", "dpkg") if shutil.which(tool) is None]
    if absent:
        raise ValueError(f"there is no {absent[0]} here, as Debian and Ubuntu have; {by_hand(package, out)}")
    print(f"apt-get download {package.name}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            run(["apt-get", "download", package.name], folder)
            (deb,) = folder.glob("*.deb")
            run(["dpkg", "-x", deb.name, "unpacked"], folder)
        except ValueError as error:
            raise ValueError(
                f"{error}\nTry again after apt-get update, or {by_hand(package, out)}"
            ) from error
        source = folder / "unpacked" / package.folder
        if missing := package.missing(source):
            raise ValueError(f"{deb.name} has no {missing[0]} in {package.folder}; {by_hand(package, out)}")
        out.mkdir(parents=True, exist_ok=True)
        for file in package.files:
            shutil.move(source / file, out / file)


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("name", choices=sorted(PACKAGES))
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder that gets the files")
    args = parser.parse_args()
    package = PACKAGES[args.name]
    with command.sentence(__file__):
        if any(path.exists() and not path.is_dir() for path in (args.out, *args.out.parents)):
            raise no_folder(args.out)
        if package.missing(args.out):
            download(package, args.out)
    print(f"{args.out} holds", *package.files)


if __name__ == "__main__":
    main()
