"""What a PyTorch user has for the same models: a training step, and sampling. No TensorFlow and no code of the library.

    python benchmarks/model/pytorch.py step enwik8_dense 8 16 --recompute none --out model_step.jsonl
    python benchmarks/model/pytorch.py step enwik8 8 --recompute whole --out model_step.jsonl
    python benchmarks/model/pytorch.py sample enwik8 1 64 --out model_sampling.jsonl

The model is written as its documentation has it: bfloat16 autocast and fused AdamW, each block compiled; `all` by
scaled_dot_product_attention (cuDNN or flash, whichever it takes), other patterns by FlexAttention in blocks of 128.
Sampling keeps keys and values of the whole context, attends to all of them, and replays one CUDA graph a token.
A batch that does not fit is left out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.common import examples, without_tensorflow  # noqa: F401  first

from sparse_transformer import config  # isort: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("step", "sample"))
    parser.add_argument("config", choices=config.names(), metavar="CONFIG")
    parser.add_argument("batch", type=int, nargs="+")
    parser.add_argument("--recompute", choices=("none", "whole"), default="none")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("model_pytorch.jsonl"), help="gets a line a batch")
    args = parser.parse_args()
    import pytorch_model  # after the arguments: --help wants no PyTorch

    pytorch_model.run(args.what, config.load(args.config), args)


if __name__ == "__main__":
    main()
