"""Measurements side by side, each a process of its own: what runs out of memory or time costs its own row alone."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from . import turns

TENSORFLOWS = ("LD_LIBRARY_PATH", "PYTHONPATH")  # where TensorFlow's CUDA may be; PyTorch brings another one


def together(commands: dict[str, list], timeout: float, at_once: int = 64) -> None:
    """Runs Python commands by name, `at_once` of them at a time and in their order, for `timeout` seconds at most; the
    last words of what failed go to stderr.
    """
    until = time.monotonic() + timeout
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(lambda name: _run(name, commands[name], dict(os.environ), until), commands))


def in_turns(commands: dict[str, list], timeout: float, without: dict[str, tuple[str, ...]]) -> None:
    """Runs all of the commands side by side until they ask to be `alone`, and then one at a time, in their order.

    without: by name, environment variables that a command must not see.
    """
    until = time.monotonic() + timeout
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(len(commands) or 1) as pool:

        def run(number: int, name: str) -> None:
            own = turns.ticket(Path(folder), number, len(commands))
            try:
                _run(name, commands[name], _environment(without.get(name, ())) | own, until)
            finally:
                turns.end(Path(folder), number)

        list(pool.map(run, range(len(commands)), commands))


def _run(name: str, words: list, environment: dict[str, str], until: float) -> None:
    command = [sys.executable, *map(str, words)]
    try:
        left = max(0.0, until - time.monotonic())
        done = subprocess.run(command, stderr=subprocess.PIPE, timeout=left, check=False, env=environment)
        ended, errors = (
            f"status {done.returncode}",
            (done.stderr or b"no message") if done.returncode else b"",
        )
    except subprocess.TimeoutExpired as expired:
        ended, errors = "stopped: out of time", expired.stderr or b"no message"
    if errors:
        last = " | ".join(errors.decode(errors="replace").strip().splitlines()[-3:])[-600:]
        print(f"{name}: {ended}: {last}", file=sys.stderr, flush=True)


def records(script: Path, *arguments: str, without: tuple[str, ...] = ()) -> list[dict]:
    """The JSON that a measuring script writes into the file it gets as its last argument; what it prints goes through.

    without: environment variables that it must not see.
    """
    environment = _environment(without)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        subprocess.run([sys.executable, str(script), *arguments, str(out)], env=environment, check=True)
        return json.loads(out.read_text())


def _environment(without: tuple[str, ...]) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in without}


@contextmanager
def alone() -> Iterator[None]:
    """One process of this machine at a time; those of in_turns in their order."""
    turns.await_turn()
    with (Path(tempfile.gettempdir()) / "sparse_attention_measures.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def add(path: Path, record: dict) -> None:
    """Appends a record; whole, whoever else appends."""
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def read(path: Path) -> list[dict]:
    """What `add` wrote, none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
