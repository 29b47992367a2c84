"""The tile plan against the dense truth, element for element, and a few plans a person can read."""

import math
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import causal
from scipy import sparse

from blocksparse.plan import build_blocks, make_plan, pack, unpack
from blocksparse.plan.blob import Word, digest

ROOT = Path(__file__).parents[2]


def granules(numbers, granule):
    return (numbers[:, None] * granule + np.arange(granule)).reshape(-1)


def seen_through(side, rows, columns, head):
    """bool [rows, columns] of one distinct head, from the plan alone; fails where a pair is visited twice."""
    visible, visits = np.zeros((rows, columns), bool), np.zeros(rows, int)
    for tile in range(side.head_tiles[head], side.head_tiles[head + 1]):
        row = granules(side.rows[tile], side.granule)[: side.row_count[tile]]
        visits[row] += 1
        for at in range(side.offset[tile], side.offset[tile + 1]):
            column = granules(side.columns[at], side.granule)
            bits = np.ones((len(row), side.column_tile), bool)
            if at >= side.offset[tile] + side.full[tile]:
                words = side.masks[side.mask[at]].view(np.uint8)
                bits = np.unpackbits(words, axis=1, bitorder="little")[: len(row), : side.column_tile].astype(
                    bool
                )
            i, j = np.nonzero(bits)
            assert len(set(zip(i, column[j], strict=True))) == len(i), "a pair is in a tile twice"
            assert not visible[row[i], column[j]].any(), "a pair is in two tiles"
            visible[row[i], column[j]] = True
    assert (visits == 1).all(), "every row is in one tile"
    return visible


@st.composite
def cases(draw):
    block_size = draw(st.sampled_from([8, 16, 32, 64, 128]))
    sizes = st.integers(1, max(1, 384 // block_size))
    tiles = st.tuples(st.sampled_from([16, 32, 64, 128, 192]), st.sampled_from([16, 32, 64, 128]))
    return dict(
        block_size=block_size,
        shape=(draw(st.integers(1, 3)), draw(sizes), draw(sizes)),
        density=draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])),
        heavy=draw(st.sampled_from([0, 3])),
        kinds=draw(st.sampled_from([(1.0,), (1.0, 0.0, 0.5), (0.5, 0.9)])),
        tiles=(draw(tiles), draw(tiles)),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_plan_equals_dense_truth(case):
    generator = np.random.default_rng(case["seed"])
    layout = generator.random(case["shape"]) < case["density"]
    if case["heavy"]:  # a few columns that every later row sees, as the summary columns of `fixed`
        layout[:, :, :: case["heavy"]] = True

    def callback(blk_shape, *block):
        drawn = np.random.default_rng([case["seed"], *block[:3]])
        return drawn.random(blk_shape) < drawn.choice(case["kinds"])

    blocks = build_blocks(layout, case["block_size"], callback)
    plan = unpack(pack(make_plan(blocks, 1, None, *case["tiles"])))
    truth = oracle.dense_mask(layout, case["block_size"], callback)
    for head in range(len(truth)):
        size = truth.shape[1:]
        np.testing.assert_array_equal(seen_through(plan.by_query, *size, plan.head_index[head]), truth[head])
        turned = seen_through(plan.by_key, *size[::-1], plan.head_index[head])
        np.testing.assert_array_equal(turned, truth[head].T)
    for side, (m, n) in ((plan.by_query, case["tiles"][0]), (plan.by_key, case["tiles"][1])):
        assert (side.row_tile, side.column_tile, side.granule) == (m, n, math.gcd(case["block_size"], m, n))
        assert (np.diff(side.columns[side.columns[:, -1] > side.columns[:, 0]], axis=1) != 0).all()
        weight = np.diff(side.offset)
        for first, last in zip(side.head_tiles[:-1], side.head_tiles[1:], strict=True):
            assert (np.diff(weight[first:last]) <= 0).all(), "heaviest first"


def test_causal_plan():
    """48 positions, blocks and tiles of 16:   x . .     by query: 3, 2, 1 tiles, the last of each masked
    x x .     by key the same, mirrored
    x x x"""
    plan = make_plan(build_blocks(np.tri(3), 16, causal, 1), 1, None, (16, 16), (16, 16))
    side = plan.by_query
    assert side.head_tiles.tolist() == [0, 3]
    assert side.rows.tolist() == [[2], [1], [0]] and side.row_count.tolist() == [16, 16, 16]
    assert side.offset.tolist() == [0, 3, 5, 6] and side.full.tolist() == [2, 1, 0]
    assert side.columns.tolist() == [[0], [1], [2], [0], [1], [0]]
    assert side.mask.tolist() == [0] * 6
    assert side.masks.tolist() == [[[2 ** (row + 1) - 1] for row in range(16)]]
    assert plan.by_key.rows.tolist() == [[0], [1], [2]]
    assert plan.by_key.columns.tolist() == [[1], [2], [0], [2], [1], [2]]
    assert plan.by_key.masks[0, :, 0].tolist() == [2**16 - 2**row for row in range(16)]


def test_small_blocks_are_packed_side_by_side():
    """Rows 0-15 see the blocks of 8 numbered 0, 5, 6 and 9: four of them fill a tile of 32 without a mask."""
    layout = np.zeros((2, 10), bool)
    layout[:, [0, 5, 6, 9]] = True
    side = make_plan(build_blocks(layout, 8, None, 1), 1, None, (16, 32), (16, 32)).by_query
    assert side.columns.tolist() == [[0, 5, 6, 9]] and side.full.tolist() == [1] and len(side.masks) == 0


def test_a_short_column_tile_repeats_its_first_granule_masked_off():
    side = make_plan(build_blocks(np.array([[0, 1, 1, 1]]), 8, None, 1), 1, None, (16, 16), (16, 16)).by_query
    assert side.row_count.tolist() == [8] and side.rows.tolist() == [[0, 0]]
    assert side.columns.tolist() == [[1, 2], [3, 3]] and side.full.tolist() == [1]
    assert side.masks[0, :8, 0].tolist() == [0xFF] * 8


def test_runs_follow_residue_classes():
    """Classes of 24 rows: tiles of 48 visit 48 columns; tiles of 64 would straddle classes and visit 72."""
    layout = np.kron(np.eye(8), np.tri(3))
    side = make_plan(build_blocks(layout, 8, causal, 1), 1, None, (64, 64), (64, 64)).by_query
    assert side.row_count.tolist() == [48] * 4 and np.diff(side.offset).tolist() == [1] * 4


@pytest.mark.parametrize(
    "blocks, tiles, closed",
    [
        (np.kron(np.eye(8), np.tri(3)), (64, 64), 2),  # 24 rows a chunk, two of them in a row tile
        (np.kron(np.eye(4), np.tri(3)), (16, 16), 0),
        (np.kron(np.eye(2), np.tri(6)), (64, 16), 1),  # three column tiles a row tile
        (np.tri(12), (64, 64), 0),
        (np.kron(np.diag([1, 1, 0]), np.tri(4)), (32, 32), 0),  # keys that nobody sees
    ],
)
def test_a_plan_is_closed_where_every_key_has_one_row_tile(blocks, tiles, closed):
    plan = make_plan(build_blocks(blocks[None], 8, causal), 1, 2, tiles, tiles)
    assert plan.closed == closed == pack(plan)[Word.CLOSED]


def test_heavy_rows_stand_side_by_side():
    """Every fourth key block is seen by all: by key, those four share one tile of 64 and the others see little."""
    layout = np.eye(16, dtype=bool)
    layout[:, ::4] = True
    side = make_plan(build_blocks(layout, 16, None, 1), 1, None, (64, 64), (64, 64)).by_key
    assert side.rows[0].tolist() == [0, 4, 8, 12] and np.diff(side.offset).tolist() == [4, 1, 1, 1]
    assert side.full.tolist() == [4, 0, 0, 0]


def test_shared_heads_are_planned_once():
    layout = np.stack([np.tri(4), np.eye(4)] * 3)
    plan = make_plan(build_blocks(layout, 16, causal))
    assert plan.head_index.tolist() == [0, 1] * 3 and len(plan.by_query.head_tiles) == 3
    shared = make_plan(build_blocks(np.tri(4), 16, causal, 6), residues=[1, 2, 4, 1, 2, 4])
    assert shared.head_index.tolist() == [0] * 6 and shared.residues.tolist() == [1, 2, 4, 1, 2, 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            dict(residues=3),
            r"order=3 has to divide query time 64 and key time 64 into residue classes of a multiple of 16",
        ),
        (dict(residues=[1, 0]), "order=0 has to divide"),
        (
            dict(tiles_by_query=(64, 48)),
            r"tiles_by_query=\(64, 48\); it has to be two of \(16, 32, 64, 128\)",
        ),
        (dict(tiles_by_query=(64, 192)), r"it has to be two of \(16, 32, 64, 128\), or 192 and one of them"),
        (dict(tiles_by_key=(64,)), r"tiles_by_key=\(64,\); it has to be two of"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_plan(build_blocks(np.tri(4), 16, None, 2), **arguments)


def damaged(word, value, rehash=True):
    blob = pack(make_plan(build_blocks(np.tri(4), 16, causal, 2)))
    blob[word(blob) if callable(word) else word] = value
    if rehash:
        blob[2:6] = digest(blob)
    return blob


@pytest.mark.parametrize(
    ("blob", "field"),
    [
        (np.zeros(10, np.int32), "blob"),
        (np.zeros((64, 2), np.int32), "blob"),
        (np.zeros(64, np.int64), "blob"),
        (damaged(0, 7), "magic"),
        (damaged(6, 7), "length"),
        (damaged(100, 7, rehash=False), "hash"),
        (damaged(16, 48), "by_query.row_tile, column_tile"),
        (damaged(34, 5), "by_key.granule"),
        (damaged(50, 3), "start of"),
        (damaged(55, 1 << 30), "start of"),
        (damaged(lambda b: b[48], 1), "head_index"),
        (damaged(lambda b: b[50] + 1, 9), "by_query.head_tiles"),
        (damaged(lambda b: b[51], 4), "by_query.rows"),
        (damaged(lambda b: b[52], 65), "by_query.row_count"),
        (damaged(lambda b: b[53], 1), "by_query.offset"),
        (damaged(lambda b: b[54], 9), "by_query.full"),
        (damaged(lambda b: b[63], -1), "by_key.columns"),
        (damaged(lambda b: b[11], 99), "by_key.mask"),
        (damaged(lambda b: b[49], 5), "order=5"),
    ],
)
def test_a_damaged_plan_is_refused(blob, field):
    with pytest.raises(ValueError, match=field):
        unpack(blob)


class Pattern:
    """A callback as the attention patterns make them: batched, and periodic in the block numbers."""

    def __init__(self, sees, representative, distinct_heads=1):
        self.sees, self._representative, self.distinct_heads = sees, representative, distinct_heads

    def batch(self, blk_shape, head_idx, qry_idx, key_idx, blk_idx):
        i = (qry_idx[:, None] * blk_shape[0] + np.arange(blk_shape[0]))[:, :, None]
        j = (key_idx[:, None] * blk_shape[1] + np.arange(blk_shape[1]))[:, None, :]
        return self.sees(head_idx, i, j) & (j <= i)

    def representative(self, head_idx, qry_idx, key_idx):
        return self._representative(qry_idx, key_idx)

    def __call__(self, *_):
        raise AssertionError("batch is there to be used")


def banded(count, width):
    offsets = range(0, -width, -1)
    return sparse.csr_matrix(
        sparse.diags([np.ones(count, bool)] * width, offsets, (count, count), dtype=bool)
    )


def fixed_65536():
    """fixed: chunks of 256 and a summary block of 32, each of 8 heads its own."""
    count, heads = 2048, 8
    query, key = np.divmod(np.arange(count * 8), 8)
    chunk = query // 8 * 8 + key
    layouts = []
    for head in range(heads):
        column = np.tile(np.arange(7 - head, count, 8), count)
        row = np.repeat(np.arange(count), count // 8)
        row, column = np.concatenate([query, row]), np.concatenate([chunk, column])
        keep = column <= row
        matrix = sparse.csr_matrix((np.ones(keep.sum(), np.int8), (row[keep], column[keep])), (count, count))
        layouts.append(matrix > 0)
    callback = Pattern(lambda head, i, j: (i >= 0) & (j >= 0), lambda q, k: (q - q, k == q), heads)
    return build_blocks(layouts, 32, callback)


def local_1048576():
    callback = Pattern(
        lambda head, i, j: i - j < 1024, lambda q, k: (np.minimum(q, 40), np.minimum(q, 40) - q + k)
    )
    return build_blocks(banded(32768, 33), 32, callback, 1)


def strided_1048576():
    """In the order of residue classes: each of 1024 classes is causal over 1024 rows."""
    row, column = np.tril_indices(32)
    first = np.arange(1024)[:, None] * 32
    index = ((first + row).reshape(-1), (first + column).reshape(-1))
    layout = sparse.csr_matrix((np.ones(len(index[0]), bool), index), (32768, 32768))
    return build_blocks(layout, 32, Pattern(lambda head, i, j: i - j < 1024, lambda q, k: (q - k, k - k)), 1)


@pytest.mark.parametrize(
    ("build", "order", "seconds", "pairs"),
    [
        (fixed_65536, 1, 5, None),
        (local_1048576, 1, 15, 1024 * 1048576 - 1023 * 1024 // 2),
        (strided_1048576, 1024, 15, 1024 * 1024 * 1025 // 2),
    ],
)
def test_long_contexts_plan_quickly(build, order, seconds, pairs):
    start = time.process_time()
    blocks = build()
    plan = make_plan(blocks, order)
    blob = pack(plan)
    taken = time.process_time() - start
    assert taken < seconds, f"{taken:.1f} s"
    assert blob.nbytes < 32e6
    if pairs:  # every pair once: whole tiles and the bits of the others
        for side in (plan.by_query, plan.by_key):
            ones = np.bitwise_count(side.masks).sum((1, 2), dtype=np.int64)
            count = np.diff(side.offset)
            masked = np.arange(len(side.columns)) - np.repeat(side.offset[:-1], count) >= np.repeat(
                side.full, count
            )
            whole = (side.row_count.astype(np.int64) * side.full).sum() * side.column_tile
            assert whole + ones[side.mask[masked]].sum() == pairs


def test_a_million_positions_plan_in_2_gb():
    script = f"""
        import sys
        sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(ROOT)!r}, {str(ROOT / "tests")!r}]
        sys.modules["tensorflow"] = None  # layout and plan need none
        import test_engine_plan as t
        from peak import peak
        for build, order in ((t.local_1048576, 1), (t.strided_1048576, 1024)):
            t.pack(t.make_plan(build(), order))
        print(peak())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 2e9, f"{int(done.stdout) / 1e9:.2f} GB"
