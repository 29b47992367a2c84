"""Bits per dim of a trained model on a split of its data (paper, Tables 1 and 3).

python examples/evaluate.py runs/enwik8_small                # windows spread over the held-out data
python examples/evaluate.py runs/enwik8 --split test --min-context 12160 --limit all
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from sparse_transformer import command, runs
from sparse_transformer.config import SPLITS

USUAL = 0  # windows where --limit is not given


def windows(text: str) -> int | None:
    """--limit: a number of windows, or None for all."""
    return None if text == "all" else command.whole(1)(text)


def arguments() -> argparse.Namespace:
    parser = command.parser(__doc__)
    parser.add_argument(
        "run", metavar="RUN", help="folder that train.py wrote, or a trained model: text, image"
    )
    parser.add_argument(
        "--data", metavar="PATH", help="another data set, or the new place of the one that the run learnt"
    )
    parser.add_argument("--split", choices=SPLITS, default="valid")
    parser.add_argument(
        "--min-context", type=command.whole(0), default=0, help="tokens that every scored one sees at least"
    )
    parser.add_argument("--batch", type=command.whole(1), help="windows at once; the training's by default")
    parser.add_argument(
        "--limit",
        type=windows,
        default=USUAL,
        metavar="N",
        help="windows, spread evenly over the split, or `all`; a million tokens' by default, in 16 to 256",
    )
    parser.add_argument(
        "--last-weights", action="store_true", help="the weights instead of their moving averages"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="file to write the score to as well")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    with command.sentence(__file__):
        args.run = runs.open(args.run)
        settings = runs.read_config(args.run)

        from sparse_transformer import data, origin

        path = origin.path_of(args.run, args.data)
        source = data.load(settings, path, args.split)
        found = origin.measure(settings, path) if args.data else origin.check(args.run, settings, path)
        command.import_tensorflow()

        from sparse_transformer.evaluation import evaluate, load_model, usual_limit

        model = load_model(args.run, averaged=not args.last_weights)
        score = evaluate(
            model,
            source,
            min_context=args.min_context,
            limit=usual_limit(settings.n_ctx) if args.limit == USUAL else args.limit,
            batch=args.batch or settings.batch,
            bar=True,
        )
        if args.json:
            runs.write_json(args.json, asdict(score))
    print(f"{args.run}: {score} of {args.split}, minimum context {args.min_context}; data: {found}")


if __name__ == "__main__":
    main()
