"""What the commands share: their parser, TensorFlow without its log lines, and how they end."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sparse_attention.silence import quiet as quiet

WITHOUT_TRITON = "--xla_gpu_enable_triton_gemm=false"


def parser(text: str) -> argparse.ArgumentParser:
    """A parser whose help is the command's docstring as it stands."""
    return argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)


def whole(lowest: int, highest: int = 2**31 - 1) -> Callable[[str], int]:
    """The type of an argument that is a whole number of this range."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = None
        if number is None or not lowest <= number <= highest:
            limit = f" and at most {highest}" if highest < 2**31 - 1 else ""
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least {lowest}{limit}")
        return number

    return read


def windows(text: str) -> int | None:
    """The type of an argument that is a number of windows, or `all`: None."""
    return None if text == "all" else whole(1)(text)


def number(lowest: float, highest: float = math.inf) -> Callable[[str], float]:
    """The type of an argument that is a finite number of this range."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and lowest <= value <= highest):
            limit = f" and at most {highest:g}" if highest < math.inf else ""
            raise argparse.ArgumentTypeError(f"{text!r} is no number of at least {lowest:g}{limit}")
        return value

    return read


def choose_products(fast: bool) -> None:
    """Says by what XLA computes the products of a GPU, unless XLA_FLAGS is set: by cuBLAS, not by Triton.

    Some of the tiles that XLA's autotuner has Triton try, and may choose, give NaN (docs/howto/nan.md). fast: of
    several of cuBLAS's ways the fastest; which that is, and so the last bits, may differ between runs. To be called
    before TensorFlow is imported.
    """
    flags = [WITHOUT_TRITON, *(["--xla_gpu_enable_cublaslt=true"] if fast else [])]
    os.environ.setdefault("XLA_FLAGS", " ".join(flags))


def import_tensorflow(fast: bool = False) -> None:
    """Imports TensorFlow, which takes seconds: once the arguments were checked. fast: as choose_products has it."""
    choose_products(fast)
    if "tensorflow" not in sys.modules:
        with quiet():
            import tensorflow  # noqa: F401


def _expected() -> tuple[type[BaseException], ...]:
    """What ends a command with a sentence. TensorFlow's errors are among them once it has been imported."""
    tensorflow = sys.modules.get("tensorflow")
    return (ValueError, OSError, *([tensorflow.errors.OpError] if tensorflow else []))


@contextmanager
def sentence(file: str, note: Callable[[], str] = str) -> Iterator[None]:
    """Ends the command of this file with what an error says and the note, and no traceback."""
    name = Path(file).name
    try:
        yield
    except _expected() as error:
        sys.exit(f"{name}: {error}{note()}")
    except KeyboardInterrupt:
        sys.stderr.write(f"\n{name}: stopped by Ctrl-C\n")
        sys.exit(130)
