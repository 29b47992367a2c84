"""Bits per dim of a trained model on a split of its data (paper, Tables 1 and 3).

python examples/evaluate.py runs/enwik8 --data enwik8 --split test --min-context 12160
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sparse_transformer import command
from sparse_transformer.config import SPLITS


def arguments() -> argparse.Namespace:
    parser = command.parser(__doc__)
    parser.add_argument("run", type=Path, help="folder that train.py wrote")
    parser.add_argument(
        "--data", metavar="PATH", help="the data set; without it, data that every machine has"
    )
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument(
        "--min-context", type=int, default=0, help="tokens that every scored one sees at least"
    )
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--limit", type=int, help="number of windows, spread over the split; all by default")
    parser.add_argument(
        "--last-weights", action="store_true", help="the weights instead of their moving averages"
    )
    return parser.parse_args()


def main() -> None:
    args = arguments()
    with command.sentence(__file__):
        from sparse_transformer import data
        from sparse_transformer.evaluation import load_model, mean_bits

        model = load_model(args.run, averaged=not args.last_weights)
        source = data.load(model.config, args.data, args.split)
        result = mean_bits(model, source, args.min_context, args.limit, args.batch)
    print(f"{args.run}: {result:.4f} bits per dim on {args.split}, minimum context {args.min_context}")


if __name__ == "__main__":
    main()
