"""What a training notes of its steps: metrics.csv, and TensorBoard's events."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tensorflow as tf

from .files import replacing
from .metrics import COLUMNS, NAME, read_rows

# What tf.summary.scalar writes; that function itself wants TensorBoard installed.
SCALAR = tf.compat.v1.SummaryMetadata(plugin_data={"plugin_name": "scalars"})


class Log:
    """Of the steps up to the checkpoint that training resumes from; what was noted after it is noted again."""

    def __init__(self, folder: Path, start: int):
        path = folder / NAME
        with replacing(path) as file:
            for row in [COLUMNS, *(row for row in read_rows(path) if int(row[0]) < start)]:
                file.write((",".join(row) + "\n").encode())
        self.file = path.open("a")
        self.events = tf.summary.create_file_writer(str(folder))

    def add(self, step: int, seconds: float, **values: float) -> None:
        """A row; `values` are of COLUMNS, and those that are missing stay empty."""
        row = {
            "step": str(step),
            "seconds": f"{seconds:.4f}",
            **{name: repr(v) for name, v in values.items()},
        }
        self.file.write(",".join(row.get(column, "") for column in COLUMNS) + "\n")
        with _errors_of_the_disk(), self.events.as_default(step):  # which flushes them at its end
            for name, value in values.items():
                tf.summary.write(name, value, metadata=SCALAR)

    def flush(self) -> None:
        """To the disk, before the checkpoint that counts these rows as done."""
        self.file.flush()
        os.fsync(self.file.fileno())
        with _errors_of_the_disk():
            self.events.flush()

    def close(self) -> None:
        self.file.close()
        with _errors_of_the_disk():
            self.events.close()


@contextmanager
def _errors_of_the_disk() -> Iterator[None]:
    """Turns TensorFlow's errors into Python's."""
    try:
        yield
    except tf.errors.OpError as error:
        why = error.message.split("\n")[0].rpartition("; ")[2]
        raise OSError(f"TensorBoard's events: {why}") from error
