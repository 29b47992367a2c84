"""Measurements side by side, each a process of its own: what runs out of memory or time costs its own row alone."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path


def together(commands: dict[str, list], timeout: float) -> None:
    """Runs Python commands by name until all have ended, or for `timeout` seconds; the last words of what failed go
    to stderr."""
    until = time.monotonic() + timeout
    with ExitStack() as files:
        children = {}
        for name, words in commands.items():
            errors = files.enter_context(tempfile.TemporaryFile("w+"))
            children[name] = subprocess.Popen([sys.executable, *map(str, words)], stderr=errors), errors
        for name, (child, errors) in children.items():
            try:
                child.wait(timeout=max(1, until - time.monotonic()))
                ended = f"status {child.returncode}"
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
                ended = f"stopped after {timeout:.0f} s"
            if child.returncode:
                errors.seek(0)
                last = " | ".join(errors.read().strip().splitlines()[-3:])[-600:]
                print(f"{name}: {ended}: {last}", file=sys.stderr, flush=True)


@contextmanager
def alone() -> Iterator[None]:
    """One process of this machine at a time."""
    with (Path(tempfile.gettempdir()) / "sparse_attention_measures.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def add(path: Path, record: dict) -> None:
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
