"""Draws samples from a trained model: text as .txt, images as a .png grid, audio as .wav.

python examples/sample.py runs/enwik8_small --length 400
python examples/sample.py runs/enwik8_small --prompt "import "
python examples/sample.py runs/imagenet64 --prompt photograph.png --count 16       # completes its upper half
python examples/sample.py runs/music_65536 --prompt opening.wav --seconds 2
"""

from __future__ import annotations

import argparse
import os
import sys
import wave
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import formats
import numpy as np
import tensorflow as tf
from config import Config
from evaluate import load_model
from PIL import Image
from sparse_transformer import SparseTransformer


def make_generator(model: SparseTransformer, count: int, length: int):
    """Compiles (prompt [count, prompt length], temperature, seed) -> tokens [count, length]: one loop, one
    position at a time, which keeps the keys and values the patterns can still reach. Temperature 0 takes the
    likeliest token."""
    decoders = model.decoders(count)

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


def read_prompt(config: Config, prompt: str | None, seconds: float) -> np.ndarray:
    """The tokens [length] that a sample begins with: a text, an image's upper half, the start of a recording."""
    if prompt is None:
        return np.zeros(0, np.uint8)
    if config.data == "text":
        return np.frombuffer(prompt.encode(), np.uint8)
    if not Path(prompt).is_file():
        raise ValueError(f"--prompt {prompt}: no such file; give an image for images, a .wav file for audio")
    if config.data == "audio":
        return formats.read_wav(Path(prompt))[: round(seconds * formats.SAMPLE_RATE)]
    height, width, _ = config.grid
    pixels = np.asarray(Image.open(prompt).convert("RGB").resize((width, height), Image.Resampling.BOX))
    return pixels[: height // 2].reshape(-1)


def write(config: Config, tokens: np.ndarray, out: Path) -> list[Path]:
    """tokens [count, length] -> the files written: one for text and for images, one a sample for audio."""
    if config.data == "text":
        path = out.with_suffix(".txt")
        path.write_bytes(b"\n----\n".join(bytes(sample.astype(np.uint8)) for sample in tokens))
        return [path]
    if config.data == "audio":
        paths = [out.with_name(f"{out.name}{i}.wav") for i in range(len(tokens))]
        for path, sample in zip(paths, tokens, strict=True):
            with wave.open(str(path), "wb") as file:
                file.setparams((1, 2, formats.SAMPLE_RATE, 0, "NONE", ""))
                file.writeframes(np.round(formats.decode_mu_law(sample) * 32767).astype("<i2").tobytes())
        return paths
    path = out.with_suffix(".png")
    columns = int(np.ceil(len(tokens) ** 0.5))
    rows = -(-len(tokens) // columns)
    cells = np.zeros((rows * columns, np.prod(config.grid)), np.uint8)
    cells[: len(tokens), : tokens.shape[1]] = tokens
    height, width, channels = config.grid
    grid = cells.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    Image.fromarray(grid.reshape(rows * height, columns * width, channels)).save(path)
    return [path]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder that train.py wrote")
    parser.add_argument("--prompt", help="what to go on from: a text, an image file or a .wav file")
    parser.add_argument("--seconds", type=float, default=2, help="how much of a .wav prompt to take")
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument(
        "--length", type=int, help="tokens a sample, the model's context by default and at most"
    )
    parser.add_argument(
        "--temperature", type=float, default=1.0, help="1 is the model's own distribution, 0 its mode"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="file name without ending; RUN/sample by default")
    args = parser.parse_args()
    try:
        model = load_model(args.run)
        config = model.config
        length = config.n_ctx if args.length is None else args.length
        prompt = read_prompt(config, args.prompt, args.seconds)
        if not len(prompt) < length <= config.n_ctx:
            raise ValueError(
                f"--length {length} must exceed the prompt's {len(prompt)} tokens, and at most be the model's "
                f"context, {config.n_ctx}"
            )
        generate = make_generator(model, args.count, length)
        prompts = tf.constant(np.tile(prompt.astype(np.int32), (args.count, 1)))
        tokens = generate(prompts, tf.constant(args.temperature), tf.constant(args.seed)).numpy()
        paths = write(config, tokens, args.out or args.run / "sample")
    except (ValueError, OSError) as error:
        sys.exit(f"sample.py: {error}")
    if config.data == "text":
        print(paths[0].read_bytes().decode(errors="replace"))
    print("wrote", *paths)


if __name__ == "__main__":
    main()
