"""A plain Keras model of SparseTransformerBlocks under fit, beside the examples' trainer with as many: seconds a step.

    python benchmarks/model/keras_fit.py                              # a GPU's case: 12 layers of enwik8, 16 windows
    python benchmarks/model/keras_fit.py --layers 2 --batch 2 --override "grid=(8, 32)" width=64 xla=False

A line for each way to train (see WAYS): a process each, which compile side by side and then take turns.
"""

from __future__ import annotations

import argparse
import sys
import time
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.common import examples  # noqa: F401  first

from benchmarks.common import machine, timing  # isort: skip
from benchmarks.common.processes import add, alone, in_turns  # isort: skip
import step  # isort: skip  it sets what XLA is asked for
from sparse_transformer import config  # isort: skip

WAYS = {  # compile's jit_compile, whether compile_update was called, and compile's steps_per_execution
    "trainer": None,
    "fit": ("auto", False, 1),
    "fit, 4 steps a call": ("auto", False, 4),
    "fit, update": ("auto", True, 1),
    "blocks": (False, False, 1),
    "blocks, update": (False, True, 1),
}


def model_of(settings, jit_compile, update, steps_per_execution):
    import keras
    import tensorflow as tf

    from sparse_attention.layers import SparseTransformerBlock, compile_update

    keras.mixed_precision.set_global_policy(settings.precision)

    class Embeddings(keras.layers.Layer):
        def build(self, shape):
            self.tokens = self.add_weight(shape=(256, settings.width), name="tokens")
            self.places = self.add_weight(shape=(settings.n_ctx, settings.width), name="places")

        def call(self, tokens):
            return tf.gather(self.tokens, tokens) + self.places

    tokens = keras.Input((settings.n_ctx,), dtype="int32")
    x = Embeddings()(tokens)
    for number in range(settings.layers):
        mode = settings.layer_modes[number % len(settings.layer_modes)]
        x = SparseTransformerBlock(
            settings.heads,
            mode,
            settings.local_attn_ctx,
            settings.blocksize,
            settings.num_verts,
            settings.vertsize,
            dropout=settings.dropout,
            recompute=settings.recompute,
        )(x)
    logits = keras.layers.Dense(256, dtype="float32")(keras.layers.LayerNormalization()(x))
    model = keras.Model(tokens, logits)
    optimizer = keras.optimizers.AdamW(3e-4, global_clipnorm=1.0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, jit_compile=jit_compile, steps_per_execution=steps_per_execution)
    return compile_update(model) if update else model


def fitted(settings, batch: int, steps: int, jit_compile, update, steps_per_execution) -> dict:
    """Seconds of a step of fit, and of the first, which compiles."""
    import keras
    import numpy as np
    import tensorflow as tf

    times = []

    class Clock(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            float(logs["loss"])  # waits for the device
            times.append(time.perf_counter())

    windows = np.random.default_rng(0).integers(0, 256, (batch, settings.n_ctx + 1), np.int32)
    repeated = tf.data.Dataset.from_tensors((windows[:, :-1], windows[:, 1:])).repeat()
    model = model_of(settings, jit_compile, update, steps_per_execution)
    began = time.perf_counter()
    model.fit(repeated, steps_per_epoch=steps_per_execution, verbose=0)
    first = time.perf_counter() - began
    with alone():
        calls = 1 + max(2, steps // steps_per_execution)
        model.fit(repeated, steps_per_epoch=calls * steps_per_execution, callbacks=[Clock()], verbose=0)
    found = timing.median([after - before for before, after in pairwise(times)]) / steps_per_execution
    return {"seconds": round(found, 4), "seconds_first": round(first, 2), "jit_compile": model.jit_compile}


def trained(settings, batch: int, steps: int) -> dict:
    """The same of the trainer."""
    trainer = step.Steps(settings)
    first = trainer.build_seconds + trainer.run(batch, 0)["seconds"]
    with alone():
        found = trainer.run(batch, steps)["seconds"]
    return {"seconds": found, "seconds_first": round(first, 2)}


def one(way: str, settings, args) -> None:
    how = WAYS[way]
    found = (
        fitted(settings, args.batch, args.steps, *how) if how else trained(settings, args.batch, args.steps)
    )
    row = {
        "way": way,
        "config": settings.name,
        "precision": settings.precision,
        "positions": settings.n_ctx,
        "layers": settings.layers,
        "batch": args.batch,
        **found,
        **machine.record(),
    }
    print(row, flush=True)
    add(args.out, row)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="enwik8", choices=config.names(), metavar="CONFIG")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS, metavar="WAY")
    parser.add_argument("--one", choices=WAYS, metavar="WAY", help="in this process")
    parser.add_argument("--timeout", type=int, default=1200, help="seconds until what still runs is stopped")
    parser.add_argument("--override", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path("model_keras_fit.jsonl"), help="gets a line")
    args = parser.parse_args()
    settings = config.load(args.config).override([*args.override, f"layers={args.layers}", "batch=1"])
    if args.one:
        one(args.one, settings, args)
        return
    in_turns({way: [__file__, *sys.argv[1:], "--one", way] for way in args.ways}, args.timeout, {})


if __name__ == "__main__":
    main()
