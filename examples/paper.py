"""Reproduces Table 2 of the paper on data that every machine can have, and writes runs/paper/SCALE/report.md.

python examples/fetch.py gcide --out data/gcide
python examples/fetch.py fashion --out data/fashion
python examples/paper.py laptop                     # small models, one seed, two CPU cores
python examples/paper.py card                       # gcide and fashion, three seeds, a GPU

A training that was stopped goes on where it was, and one that was scored is not done again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from sparse_transformer import command, table2

HERE = Path(__file__).parent


def arguments() -> argparse.Namespace:
    parser = command.parser(__doc__)
    parser.add_argument("scale", choices=("laptop", "card"))
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with gcide and fashion in it")
    parser.add_argument("--out", type=Path, default=Path("runs/paper"))
    parser.add_argument(
        "--override", metavar="KEY=VALUE", action="append", default=[], help="changes every configuration"
    )
    return parser.parse_args()


def run(name: str, *words) -> None:
    """A command of this folder. Raises ValueError where it fails; it has said why."""
    status = subprocess.run([sys.executable, HERE / name, *map(str, words)]).returncode
    if status:
        raise ValueError(f"{name} ended with status {status}; the same command goes on from there")


def write(out: Path, wanted: list[table2.Training]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.md").write_text(table2.page(out, wanted), encoding="utf-8")


def main() -> None:
    args = arguments()
    out = args.out / args.scale
    wanted = table2.trainings(args.scale)
    with command.sentence(__file__):
        for path in map(args.data.joinpath, table2.DATA.values()):
            if not path.exists():
                name = path.relative_to(args.data).parts[0]
                raise ValueError(
                    f"there is no {path}; python examples/fetch.py {name} --out {args.data / name}"
                )
        for number, training in enumerate(wanted, 1):
            folder, data = training.folder(out), args.data / table2.DATA[training.kind]
            if (folder / "score.json").exists():
                continue
            print(
                f"{number} of {len(wanted)}: {training.kind}, {training.pattern}, seed {training.seed}",
                flush=True,
            )
            changes = (*training.overrides, f"seed={training.seed}", *args.override)
            flags = [word for change in changes for word in ("--override", change)]
            run("train.py", training.config, "--data", data, "--out", folder, *flags)
            run("evaluate.py", folder, "--split", "test", "--json", folder / "score.json")
            write(out, wanted)
        write(out, wanted)
    print(f"wrote {out / 'report.md'}")


if __name__ == "__main__":
    main()
