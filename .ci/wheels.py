"""Builds a wheel that needs no compiler: the ops for x86-64-v2 to v4, XLA's, and the GPU kernels of usual attentions.

    python .ci/wheels.py OUT [--capabilities 70 75 80 90 100 120]

For the TensorFlow of this environment, which the wheel wants, and for any Python. Usual are the table of attention.py
and the notebook's attention in every dtype, and the models of examples/ in half precision; what is not among them is
compiled where it is needed, if Triton is there. Wants g++, Triton and NVRTC 12, and a checkout without changes: what is
built is packed with the files of the last commit.
"""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "examples")]
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import tensorflow as tf  # noqa: E402
from sparse_transformer.config import load  # noqa: E402

from blocksparse.fused.op import Attention  # noqa: E402
from blocksparse.gpu import cuda, tuning  # noqa: E402
from blocksparse.gpu.key import key_of  # noqa: E402
from blocksparse.native.cuda import source_hash  # noqa: E402
from blocksparse.plan import make_plan  # noqa: E402
from blocksparse.plan.modes import head_modes  # noqa: E402
from blocksparse.transformer.passes import passes  # noqa: E402
from sparse_attention import compare  # noqa: E402

CAPABILITIES = (70, 75, 80, 90, 100, 120)  # 8.6 to 8.9 take the kernels of 8.0, see gpu/launcher/compiler.cc
DTYPES = ("f16", "bf16", "f32", "tf32")
MODELS = ("enwik8", "enwik8_strided", "enwik8_dense", "cifar10", "imagenet64", "music_65536", "gcide_pocket")
AT_ONCE = 16  # keys a compile process
MOST_BYTES = 20e6  # of the wheel, which was 13.0 MB for TensorFlow 2.21
OPS_BYTES, KERNEL_BYTES = 1.2e6, 16e3  # of it: all libraries and Python, and the mean of the kernels


class Usual(NamedTuple):
    """An attention that people run: its pattern, time, head_dim and the dtypes it is compiled for."""

    heads: int
    n_ctx: int
    blocksize: int
    modes: tuple
    dims: tuple[int, int]
    dtypes: tuple[str, ...]


def usual() -> Iterator[Usual]:
    table = compare._parser().parse_args([])
    for _, attn_mode, sizes in compare._patterns(table):
        pattern = dict(local_attn_ctx=None, num_verts=None, vertsize=None) | sizes
        modes = head_modes(attn_mode, table.heads, pattern.pop("local_attn_ctx"), table.blocksize, **pattern)
        dims = (table.n_embd // table.heads,) * 2
        yield Usual(table.heads, table.n_ctx, table.blocksize, tuple(modes), dims, DTYPES)
    notebook = dict(local_attn_ctx=64, blocksize=16, num_verts=4, vertsize=1)
    yield Usual(4, 256, 16, tuple(head_modes("fixed", 4, **notebook)), (32, 32), DTYPES)
    for config in map(load, MODELS):
        for attn_mode in config.layer_modes:
            sizes = (config.local_attn_ctx, config.blocksize, config.num_verts, config.vertsize)
            modes = head_modes(attn_mode, config.heads, *sizes)
            value_dim = config.width // config.heads
            dims = (int(value_dim * config.key_ratio), value_dim)
            yield Usual(config.heads, config.n_ctx, config.blocksize, tuple(modes), dims, ("f16", "bf16"))


def keys(attention: Usual, capability: int) -> Iterator[str]:
    """What a GPU asks for when it runs the attention and its gradient."""
    for number, (bst, order) in enumerate(
        passes(attention.n_ctx, attention.heads, attention.modes, attention.blocksize)
    ):
        seen, reordered = Attention(bst.active), set(order) != {1}
        plan = functools.cache(functools.partial(make_plan, bst.active, order, attention.heads))
        for dtype in attention.dtypes:
            if cuda.serves(capability) and dtype == "tf32":
                continue
            dims = attention.dims
            tiles = tuning.choose(
                dtype, *dims, attention.blocksize, seen.work, capability, reordered, seen.share
            )
            for op in ("forward", "backward"):
                yield str(key_of(plan(*tiles), op, dtype, *dims, capability=capability, joined=number > 0))


def keys_of(capabilities: Iterable[int]) -> list[str]:
    """The keys of all usual attentions."""
    return sorted({key for each in usual() for capability in capabilities for key in keys(each, capability)})


def compile_kernels(names: list[str], folder: Path) -> None:
    """Compile what compiles here, and say what does not.

    Without the lines of their sources and their PTX, which profilers show, kernels take a third.
    """
    lean = os.environ | dict(TRITON_DISABLE_LINE_INFO="1")
    program = [sys.executable, str(ROOT / "blocksparse" / "gpu" / "compile.py"), "--out", str(folder)]
    for begin in range(0, len(names), AT_ONCE):
        subprocess.run([*program, *names[begin : begin + AT_ONCE]], env=lean)
    made = [name for name in names if (folder / name / "manifest").exists()]
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{len(made)} of {len(names)} keys of GPU kernels, {size / 1e6:.1f} MB", flush=True)
    if not made:
        sys.exit("no GPU kernel was compiled")


def refuse_changes() -> None:
    """Built from this folder, packed from a clone: with changes that are not committed, one would not fit the other."""
    status = ["git", "-C", str(ROOT), "status", "--porcelain"]
    changed = subprocess.run(status, check=True, capture_output=True, text=True).stdout.splitlines()
    if changed:
        first = f"{changed[0].strip()}{' ...' if changed[1:] else ''}"
        sys.exit(
            f"{ROOT} has changes that are not committed ({first}): the wheel would hold the last commit's files "
            "beside libraries and kernels of other sources. Commit, stash or remove them."
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder that gets the wheel")
    parser.add_argument("--capabilities", nargs="*", type=int, default=CAPABILITIES, help="ten times each")
    args = parser.parse_args()
    refuse_changes()
    args.out = args.out.resolve()  # commands below run in other folders
    args.out.mkdir(parents=True, exist_ok=True)
    clone = args.out / "source"
    shutil.rmtree(clone, ignore_errors=True)
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    prebuilt = clone / "blocksparse" / "prebuilt"
    subprocess.run(
        [sys.executable, "-m", "blocksparse.build", "--portable", prebuilt], check=True, cwd=args.out
    )
    if args.capabilities:
        compile_kernels(keys_of(args.capabilities), prebuilt / f"kernels-{source_hash()}")
    (prebuilt / "tensorflow").write_text(tf.__version__)  # setup.py reads it
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", args.out, clone]
    subprocess.run(pip, check=True)
    shutil.rmtree(clone)
    for wheel in args.out.glob("*.whl"):
        print(f"{wheel}: {wheel.stat().st_size / 1e6:.1f} MB")
        if wheel.stat().st_size > MOST_BYTES:
            sys.exit(f"that is more than {MOST_BYTES / 1e6:.0f} MB: cut the list of usual attentions")


if __name__ == "__main__":
    main()
