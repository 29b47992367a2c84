"""What a layout and a mask callback mean, and what is refused."""

import numpy as np
import pytest
import tensorflow as tf
from layouts import causal
from scipy import sparse

from blocksparse import BlocksparseTransformer
from blocksparse.fused import op
from blocksparse.plan import build_blocks, scatter

CAUSAL = np.tri(3, dtype=bool)


def lists(blocks):
    return [list(zip(h.query.tolist(), h.key.tolist(), h.mask.tolist(), strict=True)) for h in blocks.heads]


def test_blocks_of_a_causal_layout():
    blocks = build_blocks(CAUSAL, 8, causal, 2)
    assert lists(blocks) == [[(0, 0, 1), (1, 0, 0), (1, 1, 1), (2, 0, 0), (2, 1, 0), (2, 2, 1)]]
    assert blocks.head_index.tolist() == [0, 0] and blocks.lut_heads == 1
    np.testing.assert_array_equal(blocks.masks, [np.ones((8, 8)), np.tri(8)])


@pytest.mark.parametrize(
    "layout",
    [
        CAUSAL.astype(np.int32) * 3,
        CAUSAL.astype(float),
        CAUSAL.tolist(),
        sparse.csr_matrix(CAUSAL),
        sparse.coo_matrix(CAUSAL),
        sparse.csc_array(CAUSAL),
        sparse.csr_matrix(([1, 0, 1, 1, 1, 1, 1], ([2, 0, 2, 2, 1, 1, 0], [2, 1, 1, 0, 1, 0, 0])), (3, 3)),
    ],
)
def test_every_kind_of_layout(layout):
    assert lists(build_blocks(layout, 8, causal, 2)) == lists(build_blocks(CAUSAL, 8, causal, 2))


def test_distinct_heads_are_found_by_what_they_are():
    def second_differs(blk_shape, head_idx, *block):
        return np.full(blk_shape, head_idx != 1)

    blocks = build_blocks([sparse.csr_matrix(CAUSAL)] * 4, 8, second_differs)
    assert blocks.head_index.tolist() == [0, 1, 0, 0] and len(blocks.heads) == 2 and blocks.lut_heads == 4


def test_the_callback_is_called_once_a_block_in_order():
    calls = []

    def callback(*arguments):
        calls.append(arguments)
        return np.ones(arguments[0], bool)

    build_blocks(np.stack([CAUSAL, np.eye(3)]), 8, callback)
    first = [
        ((8, 8), 0, q, k, b) for b, (q, k) in enumerate([(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)])
    ]
    assert calls == first + [((8, 8), 1, q, q, q) for q in range(3)]
    assert all(type(number) is int for call in calls for number in call[1:])


def test_batches_and_representatives_spare_calls():
    class Callback:
        distinct_heads = 2
        evaluated = 0

        def representative(self, head_idx, qry_idx, key_idx):
            return qry_idx - key_idx, key_idx * 0

        def batch(self, blk_shape, head_idx, qry_idx, key_idx, blk_idx):
            self.evaluated += len(qry_idx)
            np.testing.assert_array_equal(np.stack([qry_idx, key_idx], 1), np.argwhere(layout)[blk_idx])
            return np.stack([causal(blk_shape, 0, q, k, 0) for q, k in zip(qry_idx, key_idx, strict=True)])

    layout = np.tri(40, dtype=bool)
    fast = Callback()
    blocks = build_blocks(np.stack([layout] * 6), 8, fast)
    assert fast.evaluated == 2 * 40  # two distinct heads, 40 distances
    assert lists(blocks) == lists(build_blocks(layout, 8, causal, 1))
    fast.representative = None
    del Callback.representative
    del fast.representative
    fast.evaluated = 0
    build_blocks(layout, 8, fast, 1)
    assert fast.evaluated == layout.sum()


def returning(value):
    return lambda *_: value


class TooFew:
    @staticmethod
    def batch(*_):
        return np.ones((1, 8, 8), bool)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            (CAUSAL, 24),
            ValueError,
            r"block_size=24 is not offered; use one of \(8, 16, 32, 64, 128\) \(nearest: 16\)",
        ),
        ((CAUSAL, 8), ValueError, "heads is None; a layout shared by all heads needs heads="),
        (
            (sparse.csr_matrix(CAUSAL), 8),
            ValueError,
            "heads is None; a layout shared by all heads needs heads=",
        ),
        ((CAUSAL, 8, None, 0), ValueError, "heads=0 does not fit a layout of 1 heads"),
        (
            (np.stack([CAUSAL] * 3), 8, None, 4),
            ValueError,
            "heads=4 does not fit a layout of 3 heads; use heads=3",
        ),
        (
            (np.ones(4), 8),
            ValueError,
            r"layout has shape \[4\]; it has to be \[query_blocks, key_blocks\] or",
        ),
        ((np.ones((2, 0)), 8), ValueError, r"layout has shape \[2, 0\]"),
        (
            (np.array([["x"]]), 8),
            TypeError,
            "layout has dtype <U1; give a boolean array or scipy.sparse matrices",
        ),
        (
            ([sparse.eye(2), sparse.eye(3)], 8),
            ValueError,
            r"heads of different shapes, \[\(2, 2\), \(3, 3\)\]; give all heads the same shape",
        ),
        (
            (CAUSAL, 8, returning(np.ones((8, 4), bool)), 1),
            ValueError,
            r"mask_callback returned bool \[8, 4\] for head, query and key block \(0, 0, 0\); it has to return a "
            r"NumPy array of bool \[8, 8\]",
        ),
        ((CAUSAL, 8, returning(np.ones((8, 8))), 1), TypeError, r"returned float64 \[8, 8\]"),
        ((CAUSAL, 8, returning(None), 1), TypeError, "returned NoneType for"),
        ((CAUSAL, 8, TooFew(), 1), ValueError, "mask_callback.batch returned 1 masks for 6 blocks"),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        build_blocks(*arguments)


def test_a_sequence_of_one_layout_is_of_one_head():
    assert len(build_blocks([sparse.csr_matrix(CAUSAL)], 8).head_index) == 1


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.int8])
def test_masks_of_integers_are_read_as_openai_s_packbits_does(dtype):
    mask = np.tri(8, dtype=bool)
    want = build_blocks(CAUSAL, 8, returning(mask), 1)
    got = build_blocks(CAUSAL, 8, returning((mask * 3).astype(dtype) * (-1 if dtype != np.uint8 else 1)), 1)
    assert got.masks.dtype == bool
    np.testing.assert_array_equal(got.masks, want.masks)


@pytest.mark.parametrize(
    "layout, block_size, expected",
    [
        (np.ones((4, 8)), 64, 1.0),
        (np.eye(4), 64, 2.0),
        (np.kron(np.eye(2), np.ones((2, 1))), 64, 1.0),
        (np.kron(np.eye(2), np.ones((2, 1))), 32, 2.0),
        (np.eye(4), 128, 1.0),
        (np.array([[1, 1, 0, 0], [0, 1, 1, 0]]), 64, 1.5),
        (np.stack([np.eye(4), np.ones((4, 4))]), 64, (2 * 4 + 16) / (4 + 16)),
        (np.zeros((4, 4)), 64, 1.0),
    ],
)
def test_how_much_more_tiles_of_twice_the_rows_visit(layout, block_size, expected):
    heads = None if layout.ndim == 3 else 2
    assert scatter(build_blocks(layout, block_size, None, heads), 128, 64) == expected


def test_what_no_query_sees_is_not_visited():
    assert scatter(build_blocks(np.tri(2).T, 64, causal, 1), 128, 64) == 2.0


def test_a_cpu_has_small_tiles_where_rows_scatter(monkeypatch):
    """Tiles of 16 rows for blocks of 8 and 16, of 32 for blocks of 32; windows and dense rows have the large ones."""
    monkeypatch.setattr(op.cuda, "capabilities", list)

    def tile(layout, block_size, dim=64):
        bst = BlocksparseTransformer(layout, block_size, 1)
        (rows, columns), by_key = op._tiles(tf.float32, dim, dim, bst._attention, False, bst._attention.share)
        assert rows == columns and (rows, columns) == by_key
        return rows

    assert [tile(np.eye(32), size) for size in (8, 16, 32, 64)] == [16, 16, 32, 64]
    assert tile(np.eye(32), 8, dim=128) == 16 and tile(np.eye(32), 32, dim=128) == 32
    assert tile(np.tri(32), 8) == tile(np.tri(32) - np.tri(32, k=-16), 8) == 64
    assert tile(np.tri(32), 8, dim=128) == 32
