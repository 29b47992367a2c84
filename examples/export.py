"""Writes a run's model in the formats that other programs load: a .keras file and a SavedModel that samples.

python examples/export.py runs/enwik8_small        # runs/enwik8_small/model.keras and runs/enwik8_small/saved_model

import sparse_transformer.model                    # with examples/ on the path: the .keras file names its classes
model = keras.saving.load_model("model.keras")     # model(tokens [batch, n_ctx]) -> logits [batch, n_ctx, 256]

module = tf.saved_model.load("saved_model")        # TensorFlow alone will do
module.sample(prompt=[[73, 32]], temperature=1.0, seed=0)     # tokens [count, n_ctx] that begin with the prompt
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sparse_transformer import command, runs


def arguments() -> argparse.Namespace:
    parser = command.parser(__doc__)
    parser.add_argument("run", type=Path, help="folder that train.py wrote")
    parser.add_argument(
        "--count", type=command.whole(1), default=1, help="samples that the SavedModel draws at once"
    )
    parser.add_argument("--out", type=Path, help="folder to write to; the run's by default")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    with command.sentence(__file__):
        runs.read_config(args.run)
        command.import_tensorflow()

        from sparse_transformer import exporting
        from sparse_transformer.evaluation import load_model

        model = load_model(args.run)
        out = args.out or args.run
        paths = [exporting.keras_file(model, out), exporting.saved_model(model, args.count, out)]
    print("wrote", *paths)


if __name__ == "__main__":
    main()
