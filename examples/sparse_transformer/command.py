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


def choose_fast_products() -> None:
    """Has XLA try several of cuBLAS's ways for each product of a GPU and take the fastest, unless XLA_FLAGS is set.

    To be called before TensorFlow is imported. Which way is fastest, and so the last bits, may differ between runs.
    """
    os.environ.setdefault("XLA_FLAGS", "--xla_gpu_enable_cublaslt=true")


def import_tensorflow() -> None:
    """Imports TensorFlow, which takes seconds: once the arguments were checked."""
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
