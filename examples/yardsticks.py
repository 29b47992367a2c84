"""What general compressors need for the data that a run is scored on, in bits per byte.

python examples/yardsticks.py runs/gcide      # of text: xz; 7-Zip's PPMd and zpaq where they are here
python examples/yardsticks.py runs/fashion    # of images: PNG, WebP; JPEG XL where cjxl is here
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sparse_transformer import command, runs
from sparse_transformer.config import IMAGES


def arguments() -> argparse.Namespace:
    parser = command.parser(__doc__)
    parser.add_argument("run", metavar="RUN", help="folder that train.py wrote")
    parser.add_argument("--data", metavar="PATH", help="the new place of the data that the run learnt")
    parser.add_argument(
        "--last", type=command.whole(1), metavar="N", help="of text: given the last N bytes it learnt alone"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="file to write the numbers to as well")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    with command.sentence(__file__):
        from sparse_transformer import compressors, data, origin

        folder = runs.open(args.run)
        settings = runs.read_config(folder)
        path = origin.path_of(folder, args.data)
        origin.check(folder, settings, path)
        if settings.data in IMAGES:
            rows = compressors.images(data.load(settings, path, "test"), settings.grid, settings.data)
        else:
            splits = data.load_splits(settings, path, ("train", "test"))
            rows = compressors.stream(splits["train"], splits["test"], Path(path or "").name, args.last)
        if args.json:
            runs.write_json(args.json, rows)
    for row in rows:
        print(f"{row['name']}: {row['bits']:.3f} bits per byte; {row['note']}")


if __name__ == "__main__":
    main()
