"""Samples of a trained model, drawn one position at a time, and the files they are written to."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import tensorflow as tf

from . import gpu_sampling, stepping
from .config import Config
from .files import replacing
from .formats import audio
from .formats.images import picture_of
from .model import SparseTransformer
from .stepping import Chunk

CHUNK = 64  # positions a call of the compiled loop: tokens come while one waits, and the calls cost next to nothing


def make_generator(model: SparseTransformer, count: int, length: int, decoders=None):
    """Compiles (prompt [count, prompt length], temperature, seed) -> tokens [count, length]: one loop, one
    position at a time, the prompt's included. Temperature 0 takes the likeliest token. `decoders` are the model's for
    `count`, made here where none are given."""
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

        def draw(logits, position):
            token = drawn(logits, temperature, seed, position)
            return tf.where(position < given, prompt[:, position], token)

        return _loop(model, decoders, tf.zeros(count, tf.int32), tf.constant(0), length, draw)

    return generate


def make_chunk(of: Chunk):
    """Compiles (previous token [count], position [] or [count], draw, temperature, seed) -> the next `size` tokens
    [count, size] and the last of them [count]. `draw` numbers the draws of a seed."""

    @tf.function(jit_compile=True, autograph=False)
    def chunk(token, position, number, temperature, seed):
        behind = number - position

        def draw(logits, position):
            number = tf.reshape(position + behind, [-1])[0]
            return drawn(logits, temperature, seed, number, of.top_k, of.top_p)

        tokens = _loop(of.model, of.decoders, tf.cast(token, tf.int32), position, of.size, draw)
        return tokens, tokens[:, -1]

    return chunk


def fastest_chunk(of: Chunk):
    """make_chunk's function, of a GPU's own kernels where there are such.

    Where those turn out not to compile for the card, a warning says so and XLA takes over.
    """
    if not gpu_sampling.serves(of.model, of.decoders):
        return make_chunk(of)
    ways = [gpu_sampling.make_chunk(of)]

    def chunk(*arguments):
        try:
            return ways[-1](*arguments)
        except (tf.errors.InternalError, tf.errors.NotFoundError, tf.errors.UnavailableError) as error:
            if len(ways) > 1:
                raise
            warnings.warn(
                f"sampling goes on in XLA's loop, slower: {error.message}", RuntimeWarning, stacklevel=3
            )
            ways.append(make_chunk(of))
            return ways[-1](*arguments)

    return chunk


def _loop(model, decoders, token, position, size: int, draw):
    """token [count] before `position` -> the tokens [count, size] from there on, by draw(logits, position)."""
    weights = stepping.prepare(model)

    def body(done, token, tokens):
        logits = stepping.step(model, weights, decoders, token, position + done)
        token = draw(logits, position + done)
        return done + 1, token, tokens.write(done, token)

    start = (0, token, tf.TensorArray(tf.int32, size))
    _, _, tokens = tf.while_loop(lambda done, *_: done < size, body, start)
    return tf.transpose(tokens.stack())


def drawn(logits, temperature, seed, number, top_k: int | None = None, top_p: float | None = None):
    """logits [count, 256] -> a token [count] of softmax(logits / temperature), cut to the likeliest; 0: the mode."""
    scaled = likeliest(logits / tf.maximum(temperature, 1e-6), top_k, top_p)
    token = tf.random.stateless_categorical(scaled, 1, tf.stack([seed, number]), dtype=tf.int32)[:, 0]
    return tf.where(temperature > 0, token, tf.argmax(logits, axis=-1, output_type=tf.int32))


def likeliest(logits, top_k: int | None = None, top_p: float | None = None):
    """logits [count, n], -inf where not among the top_k largest, or not needed for a probability of top_p below 1.

    The nucleus is taken of what top_k leaves, and its first token always stays (Holtzman et al. 2020, arXiv
    1904.09751). Tokens as likely as the last one that stays do so too.
    """
    if top_k is None and top_p is None:
        return logits
    ordered = tf.sort(logits, axis=-1, direction="DESCENDING")[:, :top_k]
    floor = ordered[:, -1:]
    if top_p is not None and top_p < 1:
        before = tf.cumsum(tf.nn.softmax(ordered), axis=-1, exclusive=True)
        floor = tf.reduce_min(
            tf.where((before < top_p) | (before == 0), ordered, np.inf), axis=-1, keepdims=True
        )
    return tf.where(logits >= floor, logits, -np.inf)


def stream(
    model: SparseTransformer,
    prompt: np.ndarray,
    length: int,
    temperature: float,
    seed: int,
    top_k: int | None = None,
    top_p: float | None = None,
    lengths: np.ndarray | None = None,
) -> Iterator[np.ndarray]:
    """Yields the tokens [count, n] that follow the prompt [count, time], as they come, until rows have `length`.

    lengths [count]: how many tokens of each row of the prompt are given, time by default. All rows go on until the
    shortest has `length`; what a longer one draws beyond means nothing.
    """
    count, time = prompt.shape
    decoders = model.decoders(count)
    size = min(CHUNK, length)
    alike = lengths is None or len(set(lengths)) == 1
    chunk = fastest_chunk(Chunk(model, count, decoders, size, top_k, top_p, ragged=not alike))
    given = np.full(count, time) if lengths is None else np.asarray(lengths)
    position = np.int32(given[0]) if alike else given.astype(np.int32)
    rows = np.concatenate(
        [np.zeros((count, 1), np.int32), prompt], axis=1
    )  # what came before position 0 is unused
    token = tf.constant(rows[np.arange(count), given], tf.int32)
    if given.any():
        fill = tf.function(stepping.prefill, autograph=False)
        fill(
            model,
            decoders,
            tf.constant(stepping.padded(model.config, prompt), tf.int32),
            tf.constant(position),
        )

    def chunks(token):
        for done in range(0, length - given.min(), size):
            tokens, token = chunk(
                token,
                tf.constant(position + done),
                tf.constant(int(given.min()) + done),
                temperature,
                tf.constant(seed),
            )
            yield tokens[:, : length - given.min() - done]

    ahead = _one_ahead if gpu_sampling.serves(model, decoders) else iter
    for tokens in ahead(chunks(token)):
        yield tokens.numpy().astype(np.int32)


def _one_ahead(chunks: Iterator[tf.Tensor]) -> Iterator[tf.Tensor]:
    """Each when the one behind it has been asked for: a GPU draws that one while the host shows this."""
    before = next(chunks, None)
    for each in chunks:
        yield before
        before = each
    if before is not None:
        yield before


def sample(
    model: SparseTransformer,
    prompt: np.ndarray,
    count: int,
    length: int | None,
    temperature: float,
    seed: int,
    top_k: int | None = None,
    top_p: float | None = None,
) -> np.ndarray:
    """[count, length] tokens that begin with the prompt; the length is the model's context where none is given."""
    prompts = np.tile(prompt.astype(np.int32), (count, 1))
    length = length or model.config.n_ctx
    return np.concatenate([prompts, *stream(model, prompts, length, temperature, seed, top_k, top_p)], axis=1)


GAP = 2  # pixels between the images of a grid


def write(config: Config, tokens: np.ndarray, out: Path) -> list[Path]:
    """tokens [count, length] -> the files written: one for text and for images, one a sample for audio."""
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
        picture_of(image_grid(tokens, config.grid)).save(file, "PNG")
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
