"""Completes held-out data: what a trained model makes of the first half of images and texts that it has not seen.

python examples/complete.py image                                    # a picture: given, completed, the original
python examples/complete.py text --count 2                           # dictionary entries, to be read
python examples/complete.py runs/fashion --data data/fashion --count 24 --out fashion.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from sparse_transformer import command, runs
from sparse_transformer.config import IMAGES, Config


def arguments() -> argparse.Namespace:
    parser = command.parser(__doc__)
    parser.add_argument(
        "run", metavar="RUN", help="folder that train.py wrote, or a trained model: text, image"
    )
    parser.add_argument("--count", type=command.whole(1), default=8, help="windows of the test split")
    parser.add_argument(
        "--given",
        type=command.whole(1),
        help="tokens that are given of each; half an image or 200 by default",
    )
    parser.add_argument(
        "--length", type=command.whole(2), help="tokens of each; an image's or 600 by default"
    )
    parser.add_argument(
        "--data", metavar="PATH", help="the data set; by default what is beside a trained model"
    )
    parser.add_argument("--temperature", type=command.number(0), default=1.0)
    parser.add_argument("--seed", type=command.whole(-(2**31)), default=0)
    parser.add_argument(
        "--out", type=Path, help="picture to write; complete.png in the run's folder by default"
    )
    return parser.parse_args()


def windows(args: argparse.Namespace, folder: Path, config: Config) -> np.ndarray:
    """[count, n_ctx], spread over what there is."""
    from sparse_transformer import data, origin, pretrained

    if args.data is None and folder.parent == runs.PRETRAINED:
        found = pretrained.held_out(folder, config)
        return found[np.linspace(0, len(found) - 1, min(args.count, len(found))).astype(int)]
    source = data.load(config, origin.path_of(folder, args.data), "test")
    return source.examples(np.linspace(0, source.size - 1, min(args.count, source.size)).astype(int), 0)


def sizes(args: argparse.Namespace, config: Config) -> tuple[int, int]:
    """(given, length). Raises ValueError unless 0 < given < length <= n_ctx."""
    whole = config.n_ctx if config.data in IMAGES else min(600, config.n_ctx)
    length = args.length or whole
    given = args.given or (length // 2 if config.data in IMAGES else min(200, length // 2))
    if not 0 < given < length <= config.n_ctx:
        raise ValueError(
            f"--given {given} has to be less than --length {length}, and that at most {config.n_ctx}"
        )
    return given, length


def show(text: np.ndarray, given: int) -> None:
    """A text, with a mark where the model goes on."""
    first, rest = (
        bytes(part.astype(np.uint8)).decode(errors="replace") for part in (text[:given], text[given:])
    )
    print(f"{first}\u2588{rest}\n{'-' * 78}")


def main() -> None:
    args = arguments()
    with command.sentence(__file__):
        folder = runs.open(args.run)
        config = runs.read_config(folder)
        if config.data == "audio":
            raise ValueError(f"{folder} is a model of audio; sample.py takes a recording as --prompt")
        given, length = sizes(args, config)
        original = windows(args, folder, config)
        command.import_tensorflow()

        from sparse_transformer.evaluation import load_model
        from sparse_transformer.generation import stream

        first = original[:, :given].astype(np.int32)
        chunks = stream(load_model(folder), first, length, args.temperature, args.seed)
        tokens = np.concatenate([first, *chunks], axis=1)
        if config.data in IMAGES:
            from sparse_transformer.completions import picture

            out = args.out or runs.output(folder) / "complete.png"
            picture(config.grid, original, tokens, given, out)
            print(f"wrote {out}: above what was given, in the middle completed, below the original")
        else:
            for text in tokens:
                show(text, given)


if __name__ == "__main__":
    main()
