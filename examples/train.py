"""Trains a configuration, and goes on where it stopped, to the bit, however it was stopped.

    python examples/train.py enwik8_small                         # built-in data, a CPU will do
    python examples/train.py enwik8 --data enwik8 --override batch=16
    TF_CONFIG='...' python examples/train.py enwik8 --data ...    # on every machine; --out is a folder they share

Everything goes to --out: config.json, data.json, checkpoint.npz, metrics.csv and TensorBoard's events. Ctrl-C and
SIGTERM end the step at hand and write a checkpoint; a second signal ends at once.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sparse_transformer import cluster, command, config, runs
from sparse_transformer.config import SPLITS
from sparse_transformer.stopping import Stopping
from sparse_transformer.watchdog import Watchdog

NOT = 0  # windows of the test split where --test is not given


def arguments() -> argparse.Namespace:
    parser = command.parser(__doc__)
    parser.add_argument("config", metavar="CONFIG", choices=config.names(), help=", ".join(config.names()))
    parser.add_argument(
        "--data", metavar="PATH", help="the data set; without it, what the run began on, or built-in data"
    )
    parser.add_argument("--steps", type=command.whole(1), help="length of the run, the cosine's included")
    parser.add_argument(
        "--override", metavar="KEY=VALUE", action="append", default=[], help="changes the configuration"
    )
    parser.add_argument(
        "--test",
        type=command.windows,
        default=NOT,
        metavar="N",
        help="at the end, score N windows of the test split or `all`, into score.json as well",
    )
    parser.add_argument("--out", type=Path, help="folder of the run; runs/CONFIG by default")
    parser.add_argument(
        "--deterministic",
        action="store_true",
        help="the same bits every time on a GPU too, where that costs speed",
    )
    args = parser.parse_args()
    args.out = args.out or Path("runs") / args.config
    return args


def where(folder: Path) -> str:
    """What is left of the run, where something is."""
    from sparse_transformer import checkpoint

    try:
        step = checkpoint.steps_done(folder)
    except ValueError:
        return ""  # the error has said so
    return f"\nThe last good checkpoint, of step {step}, is in {folder}." if step else ""


def main() -> None:
    args = arguments()
    with command.sentence(__file__, lambda: where(args.out)), Stopping(Path(__file__).name) as stopping:
        steps = [f"steps={args.steps}"] if args.steps else []
        settings = config.load(args.config).override(args.override + steps)
        watchdog = Watchdog(cluster.from_environment())
        runs.check_config(args.out, settings)

        from sparse_transformer import data, origin

        path = origin.path_of(args.out, args.data)
        splits = ("train", "valid") if args.test == NOT else SPLITS
        sources = data.load_splits(settings, path, splits)
        found = origin.check(args.out, settings, path)
        stopping.moment = "while it waited for other workers"
        watchdog.gather()
        stopping.moment = "before its first step"
        # cublasLt has no room for some product of Keras's (benchmarks/LOG.md, section 33), and never ran in float32.
        command.import_tensorflow(fast=settings.precision != "float32" and not args.deterministic)

        from sparse_transformer import training

        job = training.Job(settings, args.out, found, sources, watchdog, stopping, args.test)
        training.train(job, args.deterministic)


if __name__ == "__main__":
    main()
