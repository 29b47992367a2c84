"""What the commands share: their parser, and how they end."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def parser(text: str) -> argparse.ArgumentParser:
    """A parser whose help is the command's docstring as it stands."""
    return argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)


def _expected() -> tuple[type[BaseException], ...]:
    """What ends a command with a sentence. TensorFlow's errors are among them once it has been imported."""
    tensorflow = sys.modules.get("tensorflow")
    return (ValueError, OSError, *([tensorflow.errors.OpError] if tensorflow else []))


@contextmanager
def sentence(file: str, note: str = "") -> Iterator[None]:
    """Ends the command of this file with what an error says, and no traceback."""
    try:
        yield
    except _expected() as error:
        sys.exit(f"{Path(file).name}: {error}{note}")
