"""A small byte-level Sparse Transformer that trains in about a minute on two CPU cores.

    python examples/enwik8.py                  # the Python standard library's own source text
    python examples/enwik8.py --data enwik8    # any file: here http://mattmahoney.net/dc/enwik8.zip, unpacked
    python examples/enwik8.py --smoke          # a few steps of a tiny model, no target

Ends with status 1 when the held-out text costs 3.0 bits per byte or more. This is the file to read first;
`examples/train.py` trains the paper's models.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from sparse_transformer import command


def arguments() -> argparse.Namespace:
    parser = command.parser(__doc__)
    parser.add_argument(
        "--data", metavar="FILE", help="text to learn (default: the standard library's source)"
    )
    parser.add_argument("--smoke", action="store_true", help="a few steps of a tiny model")
    return parser.parse_args()


if __name__ == "__main__":  # before TensorFlow is imported: --help and mistakes need not wait for it
    ARGS = arguments()

with command.quiet():
    import keras
    import numpy as np
    import tensorflow as tf
    from tqdm import tqdm

    from sparse_attention import blocksparse_attention_impl

TARGET = 3.0  # bits per byte; a uniform guess costs 8


@dataclass(frozen=True)
class Config:
    n_ctx: int = 256
    n_embd: int = 128
    heads: int = 4
    layers: int = 2
    history: int = 4  # bytes embedded at each position: with one, a minute ends at the entropy of byte pairs
    stride: int = 64  # the paper's l: a chunk attends to itself, and to the summaries of the chunks before it
    blocksize: int = 16
    batch: int = 4
    steps: int = 1000
    learning_rate: float = 1.5e-3
    warmup: int = 50
    eval_windows: int = 64
    seed: int = 0


SMOKE = Config(
    n_ctx=64, n_embd=32, heads=2, layers=1, stride=32, blocksize=8, batch=2, steps=3, warmup=1, eval_windows=2
)


def standard_library() -> bytes:
    """The source text that every machine with Python has."""
    files = sorted(Path(os.__file__).parent.glob("*.py"))
    return b"".join(file.read_bytes() for file in files)


def load_splits(path: str | None, n_ctx: int) -> list[np.ndarray]:
    """Returns training, validation and test bytes: 90%, 5% and 5%, as is usual for enwik8."""
    try:
        text = np.frombuffer(Path(path).read_bytes() if path else standard_library(), np.uint8)
    except OSError as error:
        sys.exit(
            f"--data: cannot read {path} ({error.strerror}); give a text file, such as enwik8 unpacked from "
            "http://mattmahoney.net/dc/enwik8.zip"
        )
    if len(text) < 40 * n_ctx:
        sys.exit(f"--data: {path} has {len(text)} bytes; at least {40 * n_ctx} are needed to hold some out")
    return np.split(text, [len(text) * 90 // 100, len(text) * 95 // 100])


def windows(text: np.ndarray, starts: np.ndarray, n_ctx: int) -> np.ndarray:
    return text[starts[:, None] + np.arange(n_ctx)].astype(np.int32)


def embedding(count: int, config: Config) -> keras.layers.Embedding:
    return keras.layers.Embedding(count, config.n_embd, keras.initializers.RandomNormal(stddev=0.5))


class ResidualBlock(keras.layers.Layer):
    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.attention_norm = keras.layers.LayerNormalization()
        self.qkv = keras.layers.Dense(3 * config.n_embd, use_bias=False)
        self.project = keras.layers.Dense(config.n_embd, kernel_initializer="zeros")
        self.mlp_norm = keras.layers.LayerNormalization()
        self.expand = keras.layers.Dense(4 * config.n_embd, activation="gelu")
        self.contract = keras.layers.Dense(config.n_embd, kernel_initializer="zeros")

    def call(self, x):
        c = self.config
        q, k, v = tf.split(self.qkv(self.attention_norm(x)), 3, axis=-1)
        a = blocksparse_attention_impl(
            q, k, v, c.heads, "fixed", local_attn_ctx=c.stride, blocksize=c.blocksize,
            num_verts=c.heads, vertsize=1, recompute=True,
        )  # fmt: skip
        x = x + self.project(a)
        return x + self.contract(self.expand(self.mlp_norm(x)))


class SparseTransformer(keras.Model):
    """Bytes [batch, n_ctx] -> logits [batch, n_ctx, 256] of each byte, given those before it."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.byte = embedding(257 * config.history, config)
        self.row = embedding(config.n_ctx // config.stride, config)
        self.column = embedding(config.stride, config)
        self.blocks = [ResidualBlock(config) for _ in range(config.layers)]
        self.norm = keras.layers.LayerNormalization()
        self.logits = keras.layers.Dense(256, kernel_initializer="zeros")

    def call(self, x):
        c = self.config
        # Byte k back is looked up in table k; 256 stands for those before the window.
        before = [tf.pad(x[:, :-k], [[0, 0], [k, 0]], constant_values=256) for k in range(1, c.history + 1)]
        numbers = tf.stack(before, axis=-1) + 257 * tf.range(c.history)
        position = tf.range(c.n_ctx)
        h = tf.reduce_sum(self.byte(numbers), axis=2)
        h += self.row(position // c.stride) + self.column(position % c.stride)
        for block in self.blocks:
            h = block(h)
        return self.logits(self.norm(h))


def bits_per_byte(model, x):
    loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=x, logits=model(x))
    return tf.reduce_mean(loss) / np.log(2)


def train(config: Config, text: np.ndarray, seed: int) -> SparseTransformer:
    """Trains for config.steps with Adam, warm-up and cosine decay."""
    keras.utils.set_random_seed(seed)
    model = SparseTransformer(config)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, config.steps - config.warmup, warmup_target=config.learning_rate, warmup_steps=config.warmup
    )
    optimizer = keras.optimizers.Adam(schedule, beta_2=0.95, global_clipnorm=1.0)

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            loss = bits_per_byte(model, x)
        optimizer.apply_gradients(
            zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        )
        return loss

    rng = np.random.default_rng(seed)
    recent = None
    progress = tqdm(range(config.steps), unit="step", mininterval=1)
    for _ in progress:
        starts = rng.integers(len(text) - config.n_ctx + 1, size=config.batch)
        loss = float(step(windows(text, starts, config.n_ctx)))
        recent = loss if recent is None else 0.95 * recent + 0.05 * loss
        progress.set_postfix_str(f"{recent:.2f} bits/byte", refresh=False)
    return model


def evaluate(model: SparseTransformer, text: np.ndarray) -> float:
    """Mean bits per byte over windows spread evenly over the text."""
    config = model.config
    count = min(config.eval_windows, len(text) // config.n_ctx)
    starts = np.linspace(0, len(text) - config.n_ctx, count).astype(np.int64)
    loss = tf.function(lambda x: bits_per_byte(model, x), reduce_retracing=True)
    batches = np.array_split(starts, -(-count // config.batch))
    return float(
        np.average([loss(windows(text, b, config.n_ctx)) for b in batches], weights=[len(b) for b in batches])
    )


def main(args: argparse.Namespace) -> None:
    config = SMOKE if args.smoke else Config()
    training, validation, _ = load_splits(args.data, config.n_ctx)
    model = train(config, training, config.seed)
    held_out = evaluate(model, validation)
    print(f"{model.count_params():,} parameters, {config.steps * config.batch * config.n_ctx:,} bytes seen")
    print(f"training   {evaluate(model, training):.3f} bits per byte")
    print(f"validation {held_out:.3f} bits per byte (target: under {TARGET})")
    if held_out >= TARGET and not args.smoke:
        sys.exit(1)


if __name__ == "__main__":
    with command.sentence(__file__):
        main(ARGS)
