"""from_mask: the object of one predicate of (query, key), and the planner under it, against dense truth."""

import tracemalloc
from functools import partial
from time import process_time

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import sparse_attention
from blocksparse import BlocksparseTransformer, Pattern, from_mask
from blocksparse.plan import patterns
from blocksparse.plan.block_table import BlockTable, evaluated_layout
from blocksparse.plan.patterns import causal


def window(w):
    return Pattern(lambda i, j: abs(i - j) < w, reach=w, ahead=w)


PATTERNS = {
    "window": window,
    "no promise ahead": lambda w: Pattern(lambda i, j: (i - j) % w < 1, period=w),
    "causal local": lambda w: causal & patterns.local(w),
    "causal chunk": lambda w: causal & patterns.chunk(w),
    "chunks both ways": lambda w: Pattern(lambda i, j: i // w == j // w, shift=w, reach=w, ahead=w),
    "columns": lambda w: Pattern(lambda i, j: j % w < 1, shift=w, period=w),
    "not local": lambda w: ~patterns.local(w),
    "local or columns": lambda w: causal & patterns.local(w) | patterns.summary(w, 0, 1),
    "strided in a window": lambda w: patterns.strided(w // 3 + 1) & window(w),
}


def dense_mask(sees, query_time, key_time):
    seen = sees(np.arange(query_time, dtype=np.int32)[:, None], np.arange(key_time, dtype=np.int32))
    return np.broadcast_to(seen, (query_time, key_time))


def mask_of(bst):
    """bool [heads, query_time, key_time] of what an object shows."""
    bs = bst.blk_size
    seen = np.zeros((bst.heads, bst.ctx_blks_q, bs, bst.ctx_blks_k, bs), bool)
    for head, number in enumerate(bst.active.head_index):
        own = bst.active.heads[number]
        seen[head, own.query, :, own.key] = bst.active.masks[own.mask]
    return seen.reshape(bst.heads, bst.ctx_blks_q * bs, bst.ctx_blks_k * bs)


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(sorted(PATTERNS)),
    w=st.integers(1, 40),
    bs=st.sampled_from([4, 8, 16]),
    blocks=st.tuples(st.integers(1, 11), st.integers(1, 11)),
)
def test_planning_by_what_repeats_is_planning_by_every_pair(name, w, bs, blocks):
    """Rectangular, with keys ahead; the predicate is never asked about a position that does not exist."""
    pattern, (query_blocks, key_blocks) = PATTERNS[name](w), blocks
    times = query_blocks * bs, key_blocks * bs

    def inside(i, j):
        assert min(i.min(), j.min()) >= 0 and i.max() < times[0] and j.max() < times[1]
        return pattern.sees(i, j)

    promised = Pattern(inside, pattern.shift, pattern.period, pattern.reach, pattern.ahead)
    want = dense_mask(pattern.sees, *times).reshape(query_blocks, bs, key_blocks, bs).swapaxes(1, 2)
    table = BlockTable(promised, bs)
    layout = table.layout(query_blocks, key_blocks).toarray()
    np.testing.assert_array_equal(layout, want.any((2, 3)))
    np.testing.assert_array_equal(evaluated_layout(inside, query_blocks, key_blocks, bs).toarray(), layout)
    query, key = np.nonzero(layout)
    if len(query):
        np.testing.assert_array_equal(table.masks(*table.representative(query, key)), want[query, key])


@pytest.mark.parametrize("name", sorted(PATTERNS))
def test_a_function_and_a_pattern_show_the_same(name):
    pattern = PATTERNS[name](24)
    by_pattern = from_mask(pattern, 96, 128, 2, 8)
    by_function = from_mask(pattern.sees, 96, 128, 2, 8)
    want = np.stack([dense_mask(pattern.sees, 96, 128)] * 2)
    np.testing.assert_array_equal(mask_of(by_pattern), want)
    np.testing.assert_array_equal(mask_of(by_function), want)


def test_one_predicate_for_all_heads_that_takes_the_head():

    def dilated(q, k, head):
        return (k <= q) & ((q - k) % (head + 1) < 1)

    bst = from_mask(dilated, 64, 64, 3, 8)
    want = [dense_mask(partial(dilated, head=head), 64, 64) for head in range(3)]
    np.testing.assert_array_equal(mask_of(bst), want)


def test_predicates_are_cycled_over_heads():
    given = [causal & patterns.local(16), lambda q, k: k % 16 < 1]
    bst = from_mask(given, 64, 32, 5, 8)
    want = [dense_mask(getattr(given[h % 2], "sees", given[h % 2]), 64, 32) for h in range(5)]
    np.testing.assert_array_equal(mask_of(bst), want)
    assert len(bst.active.heads) == 2  # equal heads are planned once


def test_nothing_is_causal_unless_it_says_so():
    np.testing.assert_array_equal(mask_of(from_mask(lambda q, k: q >= 0, 32, 32, 1, 8)), np.ones((1, 32, 32)))


def test_predicates_may_look_things_up():
    """Documents: arrays of a length, indexed by positions."""
    document = np.repeat([0, 1, 2], [20, 24, 20])
    bst = from_mask(lambda q, k: (document[q] == document[k]) & (k <= q), 64, 64, 2, 16)
    np.testing.assert_array_equal(mask_of(bst)[1], np.tril(document[:, None] == document))


def test_attention_and_gradients_of_a_rectangle():
    """Against dense float64 attention with the same mask, empty rows included."""
    sees = lambda q, k, head: ((q + k) % (3 + head) < 1) & (q > 7)  # noqa: E731
    bst = from_mask(sees, 64, 96, 2, 16)
    assert isinstance(bst, BlocksparseTransformer)
    generator = np.random.default_rng(0)
    q, k, v, dy = (generator.standard_normal([2, time, 32]) for time in (64, 96, 96, 64))
    mask = np.stack([dense_mask(partial(sees, head=head), 64, 96) for head in range(2)])

    def dense(q, k, v):
        split = lambda x: tf.transpose(tf.reshape(x, [2, -1, 2, 16]), [0, 2, 1, 3])  # noqa: E731
        scores = tf.matmul(split(q), split(k), transpose_b=True) / 4
        weights = tf.where(mask, tf.nn.softmax(tf.where(mask, scores, -1e30)), 0)
        return tf.reshape(tf.transpose(tf.matmul(weights, split(v)), [0, 2, 1, 3]), [2, 64, 32])

    def with_gradients(attend, dtype):
        inputs = [tf.constant(x, dtype) for x in (q, k, v)]
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            y = attend(*inputs)
        return y, *tape.gradient(y, inputs, tf.constant(dy, dtype))

    for got, want in zip(with_gradients(bst.attention, tf.float32), with_gradients(dense, tf.float64)):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_a_pattern_is_planned_without_n_by_n():
    """262,144 positions: a mask of them would be 64 GB, a layout of their blocks 64 MB."""
    n = 1 << 18
    big_bird = (causal & patterns.local(256)) | (causal & patterns.summary(8192, 0, 32))
    tracemalloc.start()
    started = process_time()
    bst = from_mask(big_bird, n, n, 2, 32)
    seconds, (_, peak) = process_time() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(bst.active.heads) == 1 and peak < 100e6 and seconds < 60
    i = n - 5
    row = np.flatnonzero(big_bird.sees(np.int32(i), np.arange(n, dtype=np.int32)))
    blocks = bst.active.heads[0]
    assert set(row // 32) == set(blocks.key[blocks.query == i // 32])


def test_a_function_is_asked_in_pieces():
    largest = 0

    def sees(q, k):
        nonlocal largest
        seen = (k <= q) & (q - k < 100)
        largest = max(largest, seen.size)
        return seen

    bst = from_mask(sees, 8192, 8192, 1, 32)
    assert largest <= 1 << 22 and bst.ctx_blks_q == 256


def test_it_is_public():
    assert sparse_attention.from_mask is from_mask and sparse_attention.Pattern is Pattern


def ok(q, k):
    return k <= q


BAD = {
    "no predicate": (dict(sees="local"), TypeError, "sees is 'local'; give a function"),
    "too many": (
        dict(sees=[ok] * 3),
        ValueError,
        "sees has 3 predicates for heads=2; give at most one a head",
    ),
    "numbers": (dict(sees=lambda q, k: q - k), TypeError, "sees returned int32; it has to return booleans"),
    "and": (dict(sees=lambda q, k: k <= q and k > 3), TypeError, "write & | ~ for and, or, not"),
    "shape": (dict(sees=lambda q, k: np.ones(3, bool)), ValueError, "it has to broadcast to"),
    "time": (dict(query_time=70), ValueError, "query_time=70 is no multiple of block_size=8; nearest: 72"),
    "no int": (dict(key_time=64.0), TypeError, "key_time is 64.0; it has to be a positive int"),
    "heads": (dict(heads=0), ValueError, "heads=0; it has to be at least 1"),
    "block_size": (dict(block_size=24), ValueError, "block_size=24 is not offered"),
    "shift": (
        dict(sees=Pattern(lambda q, k: k % 5 < 1)),
        ValueError,
        r"sees promises shift=1, but differs between",
    ),
    "period": (
        dict(sees=Pattern(lambda q, k: q - k < 9, reach=3)),
        ValueError,
        r"sees promises period=1 beyond reach=3, but differs between",
    ),
    "ahead": (
        dict(sees=Pattern(lambda q, k: k - q < 9, ahead=0)),
        ValueError,
        r"sees promises ahead=0, but query \d+ sees key \d+; give a larger ahead",
    ),
}


@pytest.mark.parametrize(("change", "kind", "message"), BAD.values(), ids=BAD)
def test_what_is_no_pattern_is_refused_in_words(change, kind, message):
    arguments = dict(sees=ok, query_time=64, key_time=64, heads=2, block_size=8) | change
    with pytest.raises(kind, match=message):
        from_mask(**arguments)
