"""Where a measurement was made, in the words that go into its record."""

from __future__ import annotations

import contextlib
import os
import subprocess
from importlib import metadata

from blocksparse.native.machine import peak_memory as peak_memory
from blocksparse.native.machine import processor as processor


def card() -> str:
    """What TensorFlow computes on: the first GPU's name, or "CPU"."""
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    return tf.config.experimental.get_device_details(gpus[0]).get("device_name") if gpus else "CPU"


def record() -> dict:
    """What a result of TensorFlow says of where it was made."""
    import tensorflow as tf

    return {"device": card(), "cpu": processor(), "cores": os.cpu_count(), "tensorflow": tf.__version__}


def card_and_versions() -> str:
    """The card, its driver and the versions, as far as this environment shows them; imports none of them."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        name, driver = (
            subprocess.run(query, capture_output=True, text=True, check=True)
            .stdout.splitlines()[0]
            .split(", ")
        )
        parts = [name, f"driver {driver}"]
    except (OSError, subprocess.CalledProcessError):
        parts = [f"{processor()}, {os.cpu_count()} cores"]
    for package in ("tensorflow", "triton", "torch"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            parts.append(f"{package} {metadata.version(package)}")
    return ", ".join(parts)
