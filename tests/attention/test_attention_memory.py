"""Recomputation really happens: memory falls, and optimised graphs hold the forward operations twice."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import tensorflow as tf

from sparse_attention import recomputable

LAYERS = 3
LOSSES = {"constant gradient": tf.reduce_sum, "data for a gradient": lambda y: tf.reduce_sum(y**2)}


def peaks(name):
    """MB with and without recompute."""
    case = Path(__file__).with_name("memory_case.py")
    done = subprocess.run([sys.executable, case, name], check=True, capture_output=True, text=True)
    found = [float(word) for word in done.stdout.split()]
    print(f"{name}: {found[0]:.0f} MB with recompute, {found[1]:.0f} MB without")
    return found


@pytest.mark.slow
def test_recomputed_blocks_of_dense_attention_need_a_third_of_the_memory():
    with_recompute, without = peaks("attention_impl")
    assert without > 3 * with_recompute


@pytest.mark.slow
def test_block_sparse_attention_keeps_nothing_that_recompute_would_save():
    with_recompute, without = peaks("blocksparse_attention_impl")
    assert without < 1.5 * with_recompute


def layers(x):
    for _ in range(LAYERS):
        x = tf.tanh(tf.matmul(x, x))
    return x


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("recompute", [False, True])
def test_graph_optimisation_merges_nothing(loss, recompute):
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [16, 16])
        y = recomputable(layers)(x, recompute=recompute)
        wanted = [y, *tf.gradients(LOSSES[loss](y), x)]
        options, found = v1.RunOptions(output_partition_graphs=True), v1.RunMetadata()
        session.run(wanted, {x: [[0.1] * 16] * 16}, options=options, run_metadata=found)
    operations = Counter(node.op for graph in found.partition_graphs for node in graph.node)
    assert operations["Tanh"] == LAYERS * (2 if recompute else 1)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("recompute", [False, True])
def test_xla_merges_nothing(loss, recompute):
    @tf.function(jit_compile=True, autograph=False)
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = LOSSES[loss](recomputable(layers)(x, recompute=recompute))
        return y, tape.gradient(y, x)

    compiled = step.experimental_get_compiler_ir(tf.ones([16, 16]))(stage="optimized_hlo")
    operations = Counter(re.findall(r" = \S+ ([a-z-]+)\(", compiled))
    assert operations["tanh"] == LAYERS * (2 if recompute else 1)
