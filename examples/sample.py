"""Draws samples from a trained model: text as .txt, images as a .png grid, audio as .wav.

python examples/sample.py runs/enwik8_small --length 400
python examples/sample.py runs/enwik8_small --prompt "import " --top-p 0.9     # written as it comes
python examples/sample.py runs/imagenet64 --prompt photograph.png --count 16       # completes its upper half
python examples/sample.py runs/music_65536 --prompt opening.wav --seconds 2
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from sparse_transformer import command, runs


def arguments() -> argparse.Namespace:
    parser = command.parser(__doc__)
    parser.add_argument(
        "run", metavar="RUN", help="folder that train.py wrote, or a trained model: text, image"
    )
    parser.add_argument("--prompt", help="what to go on from: a text, an image file, a .wav or .flac file")
    parser.add_argument(
        "--seconds", type=command.number(0), default=2, help="how much of a recorded prompt to take"
    )
    parser.add_argument("--count", type=command.whole(1), default=1)
    parser.add_argument(
        "--length", type=command.whole(1), help="tokens a sample, the model's context by default and at most"
    )
    parser.add_argument(
        "--temperature",
        type=command.number(0),
        default=1.0,
        help="1 is the model's own distribution, 0 its mode",
    )
    parser.add_argument("--top-k", type=command.whole(1), help="draw from so many of the likeliest tokens")
    parser.add_argument(
        "--top-p",
        type=command.number(0, 1),
        help="draw from the likeliest tokens that together have this probability; after --top-k",
    )
    parser.add_argument("--seed", type=command.whole(-(2**31)), default=0)
    parser.add_argument("--out", type=Path, help="file name without ending; RUN/sample by default")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    with command.sentence(__file__):
        args.run = runs.open(args.run)
        settings = runs.read_config(args.run)

        from sparse_transformer import prompts

        prompt = prompts.read_prompt(settings, args.prompt, args.seconds)
        length = prompts.length_of(settings, prompt, args.length)
        command.import_tensorflow()

        from sparse_transformer.evaluation import load_model
        from sparse_transformer.generation import stream, write
        from sparse_transformer.progress import shown

        model = load_model(args.run)
        given = np.tile(prompt.astype(np.int32), (args.count, 1))
        chunks = stream(model, given, length, args.temperature, args.seed, args.top_k, args.top_p)
        text = settings.data == "text"
        tokens = np.concatenate([given, *shown(chunks, given, length, text)], axis=1)
        paths = write(settings, tokens, args.out or runs.output(args.run) / "sample")
    if text and args.count > 1:
        print(paths[0].read_bytes().decode(errors="replace"))
    print("wrote", *paths)


if __name__ == "__main__":
    main()
