"""The CPU kernels: values, gradients, special values, threads, memory."""

import itertools
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from cpu_cases import Case, causal, library, needs_kernels
from layouts import dense

pytestmark = needs_kernels
COLUMNS = (16, 32, 64, 128)
ROWS = *COLUMNS, 192
RAGGED = np.random.default_rng(1).random((3, 9, 6)) < 0.6


@pytest.mark.parametrize("tiles", list(itertools.product(ROWS, COLUMNS)), ids=str)
def test_every_tile_size(tiles):
    visible = np.random.default_rng(2).random((9 * 16, 6 * 16)) < 0.8
    Case(RAGGED, tiles=tiles, mask=visible).check()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("head_dim, value_dim", [(1, 5), (8, 8), (20, 36), (64, 128), (256, 8), (257, 300)])
def test_every_width(head_dim, value_dim, dtype):
    Case(
        RAGGED, head_dim=head_dim, value_dim=value_dim, dtype=dtype, scale=head_dim**-0.5, tiles=(128, 128)
    ).check()


@pytest.mark.parametrize("block_size", [8, 16, 32, 64, 128])
def test_every_block_size(block_size):
    time = 256
    Case(dense(time // block_size), block_size, causal(time), tiles=(64, 32)).check()


@pytest.mark.parametrize("order", [2, 3, 6])
def test_reordered_rows(order):
    time = 12 * 16
    Case(dense(12, heads=2), mask=causal(time), order=order, tiles=(128, 128)).check()


@pytest.mark.parametrize("times", [(191, 191), (100, 192), (192, 97), (5, 3), (1, 192)], ids=str)
@pytest.mark.parametrize(
    "order, tiles", [(1, (64, 32)), (3, (32, 64)), (6, (128, 128)), (1, (192, 64))], ids=str
)
def test_tensors_shorter_than_the_plan(order, tiles, times):
    """What a whole column tile shows, and scores far below zero, whose exponentials against zeros would overflow."""
    visible = np.random.default_rng(3).random((192, 192)) < 0.9
    visible[32:] = True
    low = {"q": lambda q: q.__imul__(0).__iadd__(4), "k": lambda k: k.__isub__(20)}
    for changes in ({}, low):
        Case(dense(12, heads=2), mask=visible, order=order, tiles=tiles, times=times, changes=changes).check(
            512 if changes else 8
        )


def test_many_segments_share_query_rows():
    Case(dense(64), mask=causal(1024), batch=1, tiles=(32, 64)).check()  # one head: 32 partial sums of dq


def test_local_segments_share_few_query_rows():
    time = np.arange(1024)
    near = causal(1024) & (time[:, None] - time < 40)
    layout = near.reshape(64, 16, 64, 16).any((1, 3))[None]
    Case(layout, mask=near, batch=1, tiles=(64, 64)).check()


def test_rows_that_see_nothing_are_zero():
    visible = causal(64)
    visible[:5] = visible[40:43] = False
    case = Case(dense(4), mask=visible)
    out, lse, dq, dk, dv = case.run()
    for rows in (slice(5), slice(40, 43)):
        assert (lse[:, :, rows] == -np.inf).all() and not out[:, rows].any() and not dq[:, rows].any()
    assert not dk[:, 63].any() or visible[63, 63]
    case.check()


def test_an_empty_layout_and_an_empty_batch():
    case = Case(np.zeros((1, 2, 3), bool))
    out, lse, *gradients = case.run()
    assert not out.any() and (lse == -np.inf).all() and not any(d.any() for d in gradients)
    assert [x.size for x in Case(dense(2), batch=0).run()] == [0] * 5


@pytest.mark.parametrize("scale", [8.0, -8.0])
def test_large_scores_neither_overflow_nor_vanish(scale):
    rising = {
        "k": lambda k: k.__imul__(np.linspace(0, 3, k.shape[1])[None, :, None])
    }  # the maximum keeps moving
    case = Case(dense(8), mask=causal(128), scale=scale, changes=rising, tiles=(32, 16))
    case.check(slack=256)  # scores of a thousand are themselves rounded


def poison(value, row):
    def change(array):
        array[0, row, 3] = value  # batch row 0, head 0

    return change


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_poisoned_key_reaches_only_the_queries_that_see_it(value):
    row = 37
    case = Case(dense(8, heads=2), mask=causal(128), tiles=(64, 32), changes={"k": poison(value, row)})
    clean = Case(dense(8, heads=2), mask=causal(128), tiles=(64, 32)).run()
    out, lse, dq, dk, dv = case.run()
    sees, head = case.visible[0, :, row], slice(0, 16)
    assert not np.isfinite(out[0, sees, head]).any() if np.isnan(value) else True
    for name, got, want in (("out", out, clean[0]), ("dq", dq, clean[2])):
        np.testing.assert_array_equal(got[0, ~sees, head], want[0, ~sees, head], err_msg=name)
        np.testing.assert_array_equal(got[0, :, 16:], want[0, :, 16:], err_msg=f"{name} of the other head")
        np.testing.assert_array_equal(got[1], want[1], err_msg=f"{name} of the other batch row")
    np.testing.assert_array_equal(lse[0, 0, ~sees], clean[1][0, 0, ~sees])
    if np.isnan(value):
        assert np.isnan(dq[0, sees, head]).all() and np.isnan(dk[0, : row + 1, head]).all()


@pytest.mark.parametrize("name", ["q", "v", "dout"])
def test_other_poisons_stay_in_their_head_and_batch_row(name):
    def build(changes):
        return Case(dense(8, heads=2), mask=causal(128), tiles=(32, 32), changes=changes)

    poisoned, clean = build({name: poison(np.nan, 70)}).run(), build({}).run()
    for got, want in zip(poisoned, clean, strict=True):
        np.testing.assert_array_equal(got[1], want[1])
    for at in (0, 2, 3, 4):
        np.testing.assert_array_equal(poisoned[at][0, :, 16:], clean[at][0, :, 16:])
    # Rows 0 .. 64 are other tiles, which see no later one: their output is untouched.
    np.testing.assert_array_equal(poisoned[0][0, :64], clean[0][0, :64])


THREADS = """
import sys, hashlib, tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(int(sys.argv[1]))
sys.path[:0] = sys.argv[2:]
from cpu_cases import Case, causal
from layouts import dense
import numpy as np
for dtype in ("float32", "bfloat16"):
    case = Case(dense(32, heads=2), mask=causal(512), batch=1, dtype=dtype)
    print(hashlib.sha256(b"".join(x.tobytes() for x in case.run())).hexdigest())
"""


def test_the_same_bits_for_any_number_of_threads():
    here = os.path.dirname(__file__)
    digests = set()
    for threads in ("1", "3"):
        command = [sys.executable, "-c", THREADS, threads, here, os.path.dirname(here)]
        digests.add(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert len(digests) == 1 and len(digests.pop()) > 100


def test_several_threads_with_several_shapes():
    cases = [Case(dense(n, heads=2), mask=causal(16 * n), tiles=(32, 64), seed=n) for n in (3, 5, 8, 12)]
    wrong = []

    def work(case):
        expected = case.run()
        for _ in range(5):
            if not all(np.array_equal(a, b) for a, b in zip(case.run(), expected, strict=True)):
                wrong.append(case)

    threads = [threading.Thread(target=work, args=(case,)) for case in cases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


MEMORY = """
import numpy as np, tensorflow as tf
from peak import peak
from blocksparse.native import loading
from blocksparse.plan import build_blocks, make_plan, pack
import scipy.sparse as sp
n, bs = 65536, 64
layout = sp.diags_array([True, True, True], offsets=[0, -1, -2], shape=(n // bs, n // bs), dtype=bool)
def callback(blk_shape, head_idx, qry_idx, key_idx, blk_idx):
    distance = (qry_idx - key_idx) * bs + np.arange(bs)[:, None] - np.arange(bs)
    return (distance >= 0) & (distance < 128)
callback.representative = lambda head, query, key: (query - key, 0 * key)
plan = tf.constant(pack(make_plan(build_blocks(layout.tocsr(), bs, callback, 1), 1, 1, (128, 128), (128, 128))))
library = loading.load_library()
q, k, v, dout = (tf.random.normal((1, n, 64), seed=s) for s in range(4))
dlse = tf.zeros((1, 1, n))
before = peak()
out, lse = library.blocksparse_attention(q, k, v, plan, segments=[], heads=1, scale=0.125)
gradients = library.blocksparse_attention_grad(q, k, v, out, lse, dout, dlse, plan, segments=[], heads=1, scale=0.125)
print(peak() - before)
"""


def test_memory_of_a_long_local_attention():
    result = subprocess.run(
        [sys.executable, "-c", MEMORY],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert int(result.stdout) < 200e6  # out, dq, dk, dv are 67 MB of it


def test_the_library_has_the_ops():
    assert {"blocksparse_attention", "blocksparse_attention_grad", "blocksparse_plan"} <= set(dir(library))
