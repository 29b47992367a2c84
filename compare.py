"""The table of `python attention.py`: every pattern, dense and block-sparse, forward and backward."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from math import gcd

import numpy as np
import tensorflow as tf

from blocksparse.fused.op import kernel_name
from blocksparse.native.machine import median, processor, wall
from blocksparse.plan import pictures
from blocksparse.plan.modes import head_modes

DTYPES = {"fp32": tf.float32, "fp16": tf.float16, "bf16": tf.bfloat16}
WIDTHS = {
    "pattern": 14,
    "l": 5,
    "block": 5,
    "density": 8,
    "error out": 10,
    "error grads": 12,
    "dense ms": 10,
    "sparse ms": 10,
    "ratio": 6,
    "kernel": 10,
}


def main(dense: Callable, blocksparse: Callable, arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 if a pattern disagrees beyond its dtype's tolerance, else 0.

    dense and blocksparse are `attention_impl` and `blocksparse_attention_impl`, handed over because the
    module that holds them runs as `__main__` and would be loaded again if imported.
    """
    parser = _parser()
    args = parser.parse_args(arguments)
    try:
        if args.plot:
            draw_connectivity(args.plot)
        return _compare(dense, blocksparse, args)
    except (ImportError, OSError, ValueError) as error:
        parser.error(str(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="attention.py", description="Compare block-sparse attention with dense, forward and backward."
    )
    parser.add_argument("dtype", nargs="?", choices=DTYPES, default="fp32")
    sizes = {"n-ctx": 1024, "heads": 4, "n-embd": 256, "batch": 4, "blocksize": 32, "local-attn-ctx": 32}
    notes = {"local-attn-ctx": "; window and stride, chunks are four times as long"}
    for name, size in sizes.items():
        note = f"default {size}{notes.get(name, '')}"
        parser.add_argument(f"--{name}", type=_positive, default=size, metavar="N", help=note)
    parser.add_argument(
        "--plot", metavar="FILE", help="also draw the connectivity, as Figure 3 of the paper does"
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return int(text)


def _patterns(args) -> Iterator[tuple[str, str | tuple[str, ...], dict]]:
    """(name, attn_mode, the pattern's other arguments)."""
    window, length = args.local_attn_ctx, 4 * args.local_attn_ctx
    groups = {"num_verts": gcd(args.heads, length // args.blocksize), "vertsize": 1}
    yield "all", "all", {}
    yield "local", "local", {"local_attn_ctx": window}
    yield "strided", "strided", {"local_attn_ctx": window}
    yield "chunk", "chunk", {"local_attn_ctx": length}
    yield "summary", "summary", {"local_attn_ctx": length, **groups}
    yield "fixed", "fixed", {"local_attn_ctx": length, **groups}
    yield "local+strided", "local+strided", {"local_attn_ctx": window}
    yield "local, strided", ("local", "strided"), {"local_attn_ctx": window}


def _compare(dense: Callable, blocksparse: Callable, args) -> int:
    dtype = DTYPES[args.dtype]
    shape = (args.batch, args.n_ctx, args.n_embd)
    random = np.random.default_rng(0)
    inputs = [tf.constant(random.standard_normal(shape), dtype) for _ in "qkvg"]
    rows = []  # all traced before the first is printed: sizes that do not fit are refused with no table begun
    for name, attn_mode, sizes in _patterns(args):
        pattern = {"heads": args.heads, "attn_mode": attn_mode, "blocksize": args.blocksize, **sizes}
        rows.append((name, pattern, [_step(attend, pattern, inputs) for attend in (dense, blocksparse)]))
    print(f"attention {' x '.join(map(str, shape))}, {args.heads} heads, {dtype.name}, on {_device()}")
    print(f"TensorFlow {tf.__version__}, NumPy {np.__version__}, Python {platform.python_version()}\n")
    _print_row(tuple(WIDTHS))
    tolerance, failed = _tolerance(dtype), []
    for name, pattern, steps in rows:
        errors, cells = _measure(*steps, inputs)
        context, density = pattern.get("local_attn_ctx", ""), _density(pattern, args.n_ctx)
        _print_row((name, f"{context}", f"{args.blocksize}", f"{density:.2%}", *cells))
        if not all(error <= tolerance for error in errors):  # NaN fails too
            failed.append(name)
    print("\n'local, strided': one mode a head, in turn. ratio: dense over sparse.", end=" ")
    print(f"Errors allowed: {tolerance:.0e}.")
    if failed:
        print(f"FAILED, beyond what is allowed: {'; '.join(failed)}")
    return 1 if failed else 0


def _measure(dense, sparse, inputs: list[tf.Tensor]) -> tuple[list[float], list[str]]:
    """Errors of output and gradients, and the cells that tell them, the times and the kernel."""
    expected, got = dense(*inputs), sparse(*inputs)
    errors = [_error(*pair) for pair in zip(got, expected)]
    slow, fast = _milliseconds(dense, inputs), _milliseconds(sparse, inputs)
    shown = (f"{errors[0]:.1e}", f"{max(errors[1:]):.1e}", f"{slow:.2f}", f"{fast:.2f}", f"{slow / fast:.1f}")
    return errors, [*shown, _kernel(sparse)]


def _print_row(cells: Sequence[str]) -> None:
    first, *others = WIDTHS.values()
    print(f"{cells[0]:<{first}}", *(f"{cell:>{width}}" for cell, width in zip(cells[1:], others)), flush=True)


def _step(
    attend: Callable, pattern: dict, inputs: Sequence[tf.Tensor]
) -> tf.types.experimental.ConcreteFunction:
    """Output and gradients of one pattern, traced."""

    @tf.function(autograph=False)
    def step(q, k, v, gradient):
        with tf.GradientTape() as tape:
            tape.watch((q, k, v))
            out = attend(q, k, v, recompute=True, **pattern)
        return out, *tape.gradient(out, (q, k, v), gradient)

    return step.get_concrete_function(*inputs)


def _error(got: tf.Tensor, expected: tf.Tensor) -> float:
    """|got - expected| / |expected|, Euclidean; |expected| counts as at least a thousandth of an input's norm."""
    got, expected = (x.numpy().astype(np.float64) for x in (got, expected))
    return float(np.linalg.norm(got - expected) / max(np.linalg.norm(expected), 1e-3 * expected.size**0.5))


def _tolerance(dtype: tf.DType) -> float:
    """Twice the spacing of the numbers that are multiplied; 64 times float32's, whose sums weigh more."""
    tensor_float_32 = tf.config.experimental.tensor_float_32_execution_enabled()
    if dtype == tf.float32 and not (tensor_float_32 and tf.config.list_physical_devices("GPU")):
        return 2**-17
    return 2**-6 if dtype == tf.bfloat16 else 2**-9


def _milliseconds(step: Callable, inputs: Sequence[tf.Tensor], repeats: int = 3) -> float:
    """Median time of a step that has run before: the GPU's own where it runs there, else the clock's."""
    if kernel_name() == "gpu":
        from blocksparse.native.timing import device_ms

        return device_ms(step, tuple(inputs))
    return 1000 * median(wall(lambda: step(*inputs)[0].numpy(), repeats, warm_up=0))


def _density(pattern: dict, n_ctx: int) -> float:
    """Share of the causal triangle that is seen, over all heads."""
    modes = head_modes(**pattern)
    i, j = np.arange(n_ctx)[:, None], np.arange(n_ctx)
    seen = [np.count_nonzero(mode.pattern().sees(i, j)) for mode in modes]
    total = sum(seen[head % len(seen)] for head in range(pattern["heads"]))
    return total / (pattern["heads"] * n_ctx * (n_ctx + 1) / 2)


def _kernel(step) -> str:
    operations = step.graph.get_operations()
    return kernel_name() if any(op.type.startswith("Blocksparse") for op in operations) else "reference"


def _device() -> str:
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        return tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{processor()} ({cores} cores)"


def draw_connectivity(path: str) -> None:
    """Draw the paper's Figure 3 into a file.

    Raises ImportError without matplotlib, naming what to install; ValueError for a format it cannot write.
    """
    try:
        figure = pictures.figure_3()
    except ImportError as error:
        raise ImportError("--plot needs matplotlib: pip install 'sparse_attention[plot]'") from error
    figure.savefig(path, dpi=200)
