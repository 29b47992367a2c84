"""Runs a file as Python itself runs a program."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from types import ModuleType, TracebackType

HERE = str(Path(__file__).parent)


def absolute(path: Path) -> Path:
    """The file's place, links in its name kept, as Python keeps them in `__file__`."""
    return Path(os.path.abspath(path))


def run(source: bytes, path: Path) -> None:
    """Run `source`, read from `path`, as the module `__main__`. What it raises passes through."""
    sys.argv = sys.argv[1:]
    if not sys.flags.safe_path:
        sys.path[0] = str(path.resolve().parent)  # in the place of the working directory, which -m puts there
    file = str(absolute(path))
    main = ModuleType("__main__")
    main.__dict__.update(__file__=file, __builtins__=__builtins__)
    sys.modules["__main__"] = main  # tf.app.run, pickle and multiprocessing look there
    sys.excepthook = show
    exec(compile(source, file, "exec", dont_inherit=True), main.__dict__)


def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an error with the program's lines and without those that run it."""
    shown, queue = set(), [error.with_traceback(trace)]
    while queue:
        each = queue.pop()
        if each is not None and id(each) not in shown:
            shown.add(id(each))
            each.__traceback__ = _without_ours(each.__traceback__)
            queue += each.__cause__, each.__context__
    traceback.print_exception(error)


def _without_ours(trace: TracebackType | None) -> TracebackType | None:
    kept = []
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if not (file.startswith(HERE) or file == "<frozen runpy>"):
            kept.append(trace)
        trace = trace.tb_next
    for step in reversed(kept):
        trace = TracebackType(trace, step.tb_frame, step.tb_lasti, step.tb_lineno)
    return trace
