"""TensorFlow's import without its log lines, for what runs as a command. Imports nothing heavy."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

# Lines that TensorFlow writes while it is being imported, whatever TF_CPP_MIN_LOG_LEVEL says.
LOG_LINE = re.compile(
    rb"(WARNING: All log messages before absl|[IWE]\d{4} .*\d+ \S+\.cc:\d+\]|To enable the following)"
)


@contextmanager
def quiet() -> Iterator[None]:
    """TensorFlow's import inside says nothing; what else is written to the standard error comes out afterwards."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            kept.seek(0)
            for line in kept:
                if not LOG_LINE.match(line):
                    os.write(2, line)
