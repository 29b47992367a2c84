"""A trained model in the formats that other programs load."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

import tensorflow as tf

from .files import writing
from .generation import make_generator
from .model import SparseTransformer


def keras_file(model: SparseTransformer, folder: Path) -> Path:
    """model.keras, which wants sparse_transformer.model imported before it is loaded."""
    path = folder / "model.keras"
    partial = folder / "partial.keras"  # Keras goes by the ending
    with writing(path):
        try:
            model.save(partial)
            os.replace(partial, path)
        finally:
            with suppress(OSError):  # where the folder itself could not be made
                partial.unlink()
    return path


class Sampler(tf.Module):
    """`sample(prompt, temperature, seed)`: int32 [count, length] that begin with the prompt, [count, its length]."""

    def __init__(self, model: SparseTransformer, count: int):
        super().__init__()
        self.model_variables = [variable.value for variable in model.variables]
        self.decoders = model.decoders(count)
        self.sample = make_generator(model, count, model.config.n_ctx, self.decoders)


def saved_model(model: SparseTransformer, count: int, folder: Path) -> Path:
    """saved_model, a folder that TensorFlow loads without this project: sampling needs none of its operations."""
    path, partial = folder / "saved_model", folder / "saved_model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    tf.saved_model.save(Sampler(model, count), str(partial))
    if path.exists():
        shutil.rmtree(path)
    os.replace(partial, path)
    return path
