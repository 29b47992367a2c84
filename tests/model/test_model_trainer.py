"""One step: clipping, AdamW, warm-up and cosine, averages, loss scale; against NumPy."""

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from sparse_transformer import config, flat
from sparse_transformer.evaluation import set_weights
from sparse_transformer.model import bits
from sparse_transformer.trainer import Trainer

TINY = replace(
    config.load("enwik8_small"),
    grid=(4, 16),
    layers=1,
    width=32,
    heads=2,
    local_attn_ctx=16,
    num_verts=2,
    batch=2,
    steps=6,
    warmup=2,
    average=0.5,
    weight_decay=10.0,  # enough to show in six steps
    clip=0.5,
)
TOKENS = np.random.default_rng(0).integers(0, 256, (2, 64)).astype(np.int32)


def rate(step):
    """Linear to learning_rate over the warm-up, then half a cosine to 0 (paper, section 6)."""
    if step < TINY.warmup:
        return TINY.learning_rate * step / TINY.warmup
    return TINY.learning_rate * 0.5 * (1 + np.cos(np.pi * (step - TINY.warmup) / (TINY.steps - TINY.warmup)))


def values(trainer, suffix=""):
    """Weights, or what the optimizer keeps of them, by their path in the model."""
    names = [f"adam_w/{name}_{suffix}" if suffix else name for name in flat.NAMES]
    parts = flat.unpack(trainer.model, [trainer.variables[name] for name in names])
    return {
        v.path: part.numpy().astype(np.float64) for v, part in zip(trainer.model.trainable_variables, parts)
    }


def start_anywhere(trainer):
    """From 0 the first gradients are rounding, which Adam blows up."""
    kernel = trainer.model.logits.kernel
    kernel.assign(tf.random.stateless_normal(kernel.shape, [1, 2]))
    for variable, vector in zip(trainer.replicas[0].weights, flat.pack(trainer.model).values()):
        variable.assign(vector)


def test_steps_are_those_of_adamw_with_clipping_and_averages():
    trainer = Trainer(TINY, tf.distribute.get_strategy())
    start_anywhere(trainer)
    start = values(trainer)
    want = {path: w for path, w in start.items() if not path.endswith("key/bias")}  # which has no gradient
    moment, square, average = ({path: np.zeros_like(w) for path, w in want.items()} for _ in range(3))
    for step in range(TINY.steps):
        set_weights(trainer.model, trainer.variables, averaged=False)
        trainables = [v for v in trainer.model.trainable_variables if v.path in want]
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(bits(trainer.model(TOKENS), TOKENS))
            nats = loss * np.log(2)
        gradients = tape.gradient(nats, [v.value for v in trainables])
        norm = np.sqrt(sum(np.sum(np.square(g)) for g in gradients))
        got, got_norm = trainer.step(tf.constant(TOKENS), tf.constant(step, tf.int64))
        np.testing.assert_allclose([got, got_norm], [loss, norm], rtol=1e-4)
        for variable, gradient in zip(trainables, gradients, strict=True):
            path, g = variable.path, np.float64(gradient) * min(1, TINY.clip / norm)
            moment[path] += 0.1 * (g - moment[path])
            square[path] += 0.001 * (g**2 - square[path])
            if variable.path.rsplit("/")[-1] not in ("bias", "gamma", "beta"):
                want[path] = want[path] * (1 - rate(step) * TINY.weight_decay)
            unbiased = moment[path] / (1 - 0.9 ** (step + 1)), square[path] / (1 - 0.999 ** (step + 1))
            want[path] = want[path] - rate(step) * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8)
            average[path] = want[path] if step == 0 else 0.5 * (average[path] + want[path])
    assert norm > TINY.clip
    weights, averages = values(trainer), values(trainer, "average")
    for path, weight in want.items():
        way = np.linalg.norm(weight - start[path])
        assert np.linalg.norm(weights[path] - weight) < 0.02 * way, path
        assert np.linalg.norm(averages[path] - average[path]) < 0.02 * way, path


def test_an_overflow_halves_the_loss_scale_and_leaves_the_weights():
    trainer = Trainer(replace(TINY, precision="mixed_float16"), tf.distribute.get_strategy())
    batch = tf.constant(TOKENS)
    trainer.step(batch, tf.constant(0, tf.int64))
    loss, norm = trainer.step(batch, tf.constant(1, tf.int64))
    assert np.isfinite(norm) and float(trainer.replicas[0].scale) == 2.0**15
    before = values(trainer)
    trainer.replicas[0].optimizer.dynamic_scale.assign(2.0**100)
    loss, norm = trainer.step(batch, tf.constant(2, tf.int64))
    assert np.isfinite(loss) and not np.isfinite(norm)
    assert float(trainer.replicas[0].scale) == 2.0**99
    for path, weight in values(trainer).items():
        np.testing.assert_array_equal(weight, before[path])


def test_the_batch_must_divide_over_the_replicas():
    class Three:
        num_replicas_in_sync = 3

    with pytest.raises(ValueError, match=r"batch=2 does not divide over 3 replicas; try --override batch=3"):
        Trainer(TINY, Three())
