"""Skips what needs a GPU where TensorFlow sees none, and makes tests/oracle.py importable."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))


def pytest_collection_modifyitems(items):
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
        for gpu in gpus:  # several test processes share the card
            tf.config.experimental.set_memory_growth(gpu, True)
        if not gpus:
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="TensorFlow sees no GPU"))
