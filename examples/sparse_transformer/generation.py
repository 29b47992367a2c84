"""Samples of a trained model, drawn one position at a time, and the files they are written to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
import tensorflow as tf
from PIL import Image

from .config import Config
from .files import replacing
from .formats import audio
from .model import SparseTransformer


def make_generator(model: SparseTransformer, count: int, length: int, decoders=None):
    """Compiles (prompt [count, prompt length], temperature, seed) -> tokens [count, length]: one loop, one
    position at a time, which keeps the keys and values the patterns can still reach. Temperature 0 takes the
    likeliest token. `decoders` are the model's for `count`, made here where none are given."""
    decoders = decoders or model.decoders(count)

    @tf.function(
        input_signature=[
            tf.TensorSpec([count, None], tf.int32),
            tf.TensorSpec([]),
            tf.TensorSpec([], tf.int32),
        ],
        jit_compile=True,  # a step is many small operations
    )
    def generate(prompt, temperature, seed):
        given = tf.shape(prompt)[1]
        prompt = tf.pad(prompt, [[0, 0], [0, length - given]])

        def body(position, token, tokens):
            logits = model.step(token, decoders, position)
            scaled = logits / tf.maximum(temperature, 1e-6)
            drawn = tf.random.stateless_categorical(scaled, 1, tf.stack([seed, position]), dtype=tf.int32)[
                :, 0
            ]
            token = tf.where(temperature > 0, drawn, tf.argmax(logits, axis=-1, output_type=tf.int32))
            token = tf.where(position < given, prompt[:, position], token)
            return position + 1, token, tokens.write(position, token)

        start = (0, tf.zeros(count, tf.int32), tf.TensorArray(tf.int32, length))
        _, _, tokens = tf.while_loop(lambda position, *_: position < length, body, start)
        return tf.transpose(tokens.stack())

    return generate


def sample(
    model: SparseTransformer,
    prompt: np.ndarray,
    count: int,
    length: int | None,
    temperature: float,
    seed: int,
) -> np.ndarray:
    """[count, length] tokens that begin with the prompt; the length is the model's context where none is given."""
    generate = make_generator(model, count, length)
    prompts = tf.constant(np.tile(prompt.astype(np.int32), (count, 1)))
    return generate(prompts, tf.constant(temperature), tf.constant(seed)).numpy()


GAP = 2  # pixels between the images of a grid


def write(config: Config, tokens: np.ndarray, out: Path) -> list[Path]:
    """tokens [count, length] -> the files written: one for text and for images, one a sample for audio."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if config.data == "text":
        path = out.with_suffix(".txt")
        with replacing(path) as file:
            file.write(b"\n----\n".join(bytes(sample.astype(np.uint8)) for sample in tokens))
        return [path]
    if config.data == "audio":
        paths = [out.with_name(f"{out.name}{i}.wav") for i in range(len(tokens))]
        for path, sample in zip(paths, tokens, strict=True):
            samples = np.round(audio.decode_mu_law(sample) * 32767).astype(np.int16)
            with replacing(path) as file:
                soundfile.write(file, samples, audio.SAMPLE_RATE, "PCM_16", format="WAV")
        return paths
    path = out.with_suffix(".png")
    with replacing(path) as file:
        Image.fromarray(image_grid(tokens, config.grid)).save(file, "PNG")
    return [path]


def image_grid(tokens: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    """tokens [count, length] as one picture, uint8 [height, width, channels]: white between the images, black where
    a sample ends early."""
    height, width, channels = grid
    columns = int(np.ceil(len(tokens) ** 0.5))
    rows = -(-len(tokens) // columns)
    picture = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, channels), 255, np.uint8)
    for number, sample in enumerate(tokens):
        row, column = divmod(number, columns)
        image = np.zeros(height * width * channels, np.uint8)
        image[: len(sample)] = sample
        top, left = row * (height + GAP), column * (width + GAP)
        picture[top : top + height, left : left + width] = image.reshape(grid)
    return picture
