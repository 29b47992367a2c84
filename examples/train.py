"""Trains a configuration, and goes on where it stopped, to the bit, however it was stopped.

    python examples/train.py enwik8_small                         # built-in data, a CPU will do
    python examples/train.py enwik8 --data enwik8 --override batch=16
    TF_CONFIG='...' python examples/train.py enwik8 --data ...    # on every machine; --out is a folder they share

Everything goes to --out: config.json, checkpoint.npz, metrics.csv and TensorBoard's events.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sparse_transformer import command, config


def arguments() -> argparse.Namespace:
    parser = command.parser(__doc__)
    parser.add_argument("config", metavar="CONFIG", choices=config.names(), help=", ".join(config.names()))
    parser.add_argument(
        "--data", metavar="PATH", help="the data set; without it, data that every machine has"
    )
    parser.add_argument("--steps", type=int, help="length of the run, the cosine's included")
    parser.add_argument(
        "--override", metavar="KEY=VALUE", action="append", default=[], help="changes the configuration"
    )
    parser.add_argument("--out", type=Path, help="folder of the run; runs/CONFIG by default")
    parser.add_argument(
        "--deterministic",
        action="store_true",
        help="the same bits every time on a GPU too, where that costs speed",
    )
    return parser.parse_args()


def main() -> None:
    args = arguments()
    folder = args.out or Path("runs") / args.config
    steps = [f"steps={args.steps}"] if args.steps else []
    with command.sentence(__file__, f"\nThe last good checkpoint, if there is one, is in {folder}."):
        settings = config.load(args.config).override(args.override + steps)
        from sparse_transformer import training

        training.train(settings, args.data, folder, args.deterministic)


if __name__ == "__main__":
    main()
