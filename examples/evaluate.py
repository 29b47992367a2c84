"""Bits per dim of a trained model on a split of its data (paper, Tables 1 and 3).

python examples/evaluate.py runs/enwik8_small                # windows spread over the held-out data
python examples/evaluate.py runs/enwik8 --split test --min-context 6144 9216 12160 --tokens 1000000 --limit all
python examples/evaluate.py text --split test --min-context 0 1024 1920 --shift 128 --tokens 262144 --data gcide.dict.dz
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sparse_transformer import command, runs
from sparse_transformer.config import SPLITS

if TYPE_CHECKING:
    from sparse_transformer.evaluation import Score

USUAL = 0  # windows where --limit is not given


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
        "--min-context",
        type=command.whole(0),
        nargs="+",
        default=[0],
        help="tokens that every scored one sees at least; a score for each number given",
    )
    parser.add_argument(
        "--shift",
        type=command.whole(1),
        metavar="N",
        help="windows move by N tokens, and all minimum contexts score the same tokens, each from every place that has "
        "so much before it; by default each minimum context has windows of its own",
    )
    parser.add_argument(
        "--tokens",
        type=command.whole(1),
        metavar="N",
        help="of a text or of sound: its split's first N alone",
    )
    parser.add_argument("--batch", type=command.whole(1), help="windows at once; the training's by default")
    parser.add_argument(
        "--limit",
        type=command.windows,
        default=USUAL,
        metavar="N",
        help="windows, spread evenly over the split, or `all`; a million tokens' by default, in 16 to 256",
    )
    parser.add_argument(
        "--last-weights", action="store_true", help="the weights instead of their moving averages"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="file to write the scores to as well")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    with command.sentence(__file__):
        if args.shift and args.limit not in (USUAL, None):
            raise ValueError(
                f"--limit {args.limit}: --shift scores all windows there are; --tokens makes them fewer"
            )
        args.run = runs.open(args.run)
        settings = runs.read_config(args.run)

        from sparse_transformer import data, origin

        path = origin.path_of(args.run, args.data)
        source = data.load(settings, path, args.split)
        if args.tokens is not None:
            source = data.beginning(source, args.tokens)
        found = origin.measure(settings, path) if args.data else origin.check(args.run, settings, path)
        command.import_tensorflow()

        from sparse_transformer.evaluation import load_model

        model = load_model(args.run, averaged=not args.last_weights)
        found_by = of_the_same if args.shift else of_each
        rows = []
        for context, score in zip(args.min_context, found_by(args, model, source), strict=True):
            rows.append(score.row(context))
            print(f"{args.run}: {score} of {args.split}, minimum context {context}; data: {found}")
        if args.json:
            runs.write_json(args.json, rows)


def of_each(args: argparse.Namespace, model, source) -> Iterator[Score]:
    """Scores of windows that each minimum context has of its own."""
    from sparse_transformer.evaluation import Scorer, usual_limit

    settings = model.config
    scorer = Scorer(settings.n_ctx, model)
    limit = usual_limit(settings.n_ctx) if args.limit == USUAL else args.limit
    for context in args.min_context:
        yield scorer(source, (), context, limit, args.batch or settings.batch, bar=True)


def of_the_same(args: argparse.Namespace, model, source) -> Iterator[Score]:
    """Scores of the same tokens, all that there are."""
    from sparse_transformer import contexts

    settings = model.config
    batch = args.batch or settings.batch
    yield from contexts.score(settings.n_ctx, model, source, args.min_context, args.shift, batch, bar=True)


if __name__ == "__main__":
    main()
