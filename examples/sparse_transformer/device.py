"""device.json: where a run was trained, with which versions, and the most memory that its process has held."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import tensorflow as tf

from blocksparse.fused.op import kernel_name
from blocksparse.native.machine import peak_memory, processor

from .runs import write_json

NAME = "device.json"


def write(folder: Path, parameters: int, blocksparse: bool) -> None:
    gpus = tf.config.list_physical_devices("GPU")
    name = tf.config.experimental.get_device_details(gpus[0]).get("device_name") if gpus else None
    write_json(
        folder / NAME,
        {
            "device": f"{len(gpus)} x {name}" if gpus else f"{processor()}, {cores()} cores",
            "kernel": kernel_name() if blocksparse else "dense",
            "parameters": parameters,
            "peak_bytes": peak(bool(gpus)),
            "tensorflow": tf.__version__,
            "python": platform.python_version(),
        },
    )


def peak(gpu: bool) -> int:
    """Bytes: of the first GPU what TensorFlow has taken for tensors at most, of a CPU all of this process."""
    return tf.config.experimental.get_memory_info("GPU:0")["peak"] if gpu else peak_memory()


def cores() -> int:
    """Of the CPU, those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
