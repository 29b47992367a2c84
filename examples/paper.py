"""Makes the paper again on data that every machine can have: runs/paper/SCALE/report.html, and .md, and .json.

python examples/fetch.py gcide --out data/gcide
python examples/fetch.py fashion --out data/fashion
python examples/paper.py laptop      # small models, one seed, two CPU cores, twenty minutes
python examples/paper.py card        # three seeds, one GPU, about two hours
python examples/paper.py full        # the paper's own configurations and data sets

A training that was stopped goes on where it was, what is done is not done again, and the page is written after every
step. What you have to say of it, in runs/paper/SCALE/notes.md, becomes its notes.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from pathlib import Path

from sparse_transformer import command
from sparse_transformer.paper import page
from sparse_transformer.paper.scales import SCALES
from sparse_transformer.paper.steps import Places, Step, absent, plan

HERE = Path(__file__).parent


def arguments() -> argparse.Namespace:
    parser = command.parser(__doc__)
    parser.add_argument("scale", choices=SCALES)
    parser.add_argument(
        "--data", type=Path, default=Path("data"), help="folder of the data sets, each by its name"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/paper"))
    parser.add_argument(
        "--override", metavar="KEY=VALUE", action="append", default=[], help="changes every configuration"
    )
    parser.add_argument("--page", action="store_true", help="only the page, of what is there")
    return parser.parse_args()


def run(words: tuple[str, ...]) -> None:
    """A command of this folder. Raises ValueError where it fails; it has said why.

    It is in a session of its own and gets Ctrl-C and SIGTERM from here, each once: at a second one a training ends
    without a checkpoint.
    """
    process = subprocess.Popen([sys.executable, HERE / words[0], *words[1:]], start_new_session=True)

    def forward(number, _):
        process.send_signal(number)
        raise SystemExit(128 + number)

    earlier = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        status = process.wait()
    finally:
        process.wait()
        for number, handler in earlier.items():
            signal.signal(number, handler)
    if status:
        mended = "once what it says above is mended, the same command goes on from there"
        raise ValueError(f"{words[0]} ended with status {status}; {mended}")


def make(places: Places, steps: list[Step]) -> None:
    """Every step whose result is not there, and the page after each."""
    began = time.monotonic()
    for number, step in enumerate(steps, 1):
        if step.makes.exists():
            continue
        print(f"{number} of {len(steps)}, after {time.monotonic() - began:.0f} s: {step.says}", flush=True)
        run(step.words)
        page.write(places, steps)


def main() -> None:
    args = arguments()
    places = Places(SCALES[args.scale], args.data, args.out / args.scale)
    with command.sentence(__file__):
        steps = plan(places, args.override)
        if not args.page:
            if missing := absent(places):
                raise ValueError("\n".join(missing))
            make(places, steps)
        page.write(places, steps)
    print(f"wrote {places.out / 'report.html'}, report.md and report.json beside it")


if __name__ == "__main__":
    main()
