"""The peak of memory of memory.py's layers in PyTorch: no TensorFlow and no code of the library.

    python benchmarks/model/pytorch_memory.py 3072 stored --out model_memory.jsonl

stored and recomputed: scaled_dot_product_attention's plain way (MATH), which keeps the weights, without and with a
checkpoint around each layer; fused: its way that keeps none of them in float32 (EFFICIENT_ATTENTION).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.common.processes import add, alone
from benchmarks.model.memory import HEAD_DIM, HEADS, LAYERS, PYTORCH, WAYS


def peak(n: int, way: str) -> int | None:
    """Bytes above the input of LAYERS dense causal attentions, forward and backward; None where they do not fit."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention
    from torch.utils.checkpoint import checkpoint

    def attend(y):
        heads = y.view(1, n, HEADS, HEAD_DIM).transpose(1, 2)
        return (
            scaled_dot_product_attention(heads, heads, heads, is_causal=True).transpose(1, 2).reshape(y.shape)
        )

    x = torch.randn(1, n, HEADS * HEAD_DIM, device="cuda", requires_grad=True)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    try:
        with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION if way == "fused" else SDPBackend.MATH):
            y = x
            for _ in range(LAYERS):
                y = y + (checkpoint(attend, y, use_reentrant=False) if way == "recomputed" else attend(y))
            (y**2).sum().backward()
    except torch.OutOfMemoryError:
        return None
    return torch.cuda.max_memory_allocated() - before


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("n", type=int, help="positions, a multiple of 32")
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("--out", type=Path, default=Path("model_memory.jsonl"), help="gets a line")
    args = parser.parse_args()
    with alone():
        add(
            args.out, {"n": args.n, "way": args.way, "peak": peak(args.n // 32 * 32, args.way), "of": PYTORCH}
        )


if __name__ == "__main__":
    main()
