"""Patterns against their definitions written out, and what is derived from them against what it means."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blocksparse.plan.block_table import BlockTable
from blocksparse.plan.modes import MODES, head_modes
from blocksparse.plan.patterns import causal, local, nothing, residue_classes, strided


def seen(mode, n, length, first, last, looks_ahead=False):
    """The table of modes, once more and by hand."""
    i, j = np.indices((n, n))
    in_columns = (j % length >= first) & (j % length < last)
    meaning = {
        "all": np.full((n, n), True),
        "local": abs(i - j) < length,
        "strided": (i - j) % length == 0,
        "chunk": i // length == j // length,
        "previous": abs(i // length - j // length) == 1,
        "summary": in_columns,
        "fixed": (i // length == j // length) | in_columns,
        "prefix": np.full((n, n), True),
    }
    names = mode.split("+")
    shown = np.logical_or.reduce([meaning[name] for name in names]) & (looks_ahead | (j <= i))
    return shown | (j < length) if "prefix" in names else shown


def evaluate(pattern, n):
    return np.broadcast_to(pattern.sees(np.arange(n)[:, None], np.arange(n)), (n, n))


def by_blocks(mask, bs):
    n = len(mask) // bs
    return mask.reshape(n, bs, n, bs).transpose(0, 2, 1, 3)


modes = st.lists(st.sampled_from(MODES), min_size=1, max_size=3, unique=True).map("+".join)


@settings(deadline=None, max_examples=80)
@given(
    mode=modes,
    length=st.integers(1, 80),
    bs=st.sampled_from([8, 16, 32]),
    blocks=st.integers(1, 12),
    group=st.integers(0, 3),
    causal=st.booleans(),
    data=st.data(),
)
def test_layout_masks_and_representatives_agree_with_the_predicate(
    mode, length, bs, blocks, group, causal, data
):
    n = blocks * bs
    width = data.draw(st.integers(1, length))
    groups = data.draw(st.integers(1, length // width))
    # blocksize=1 lets vertsize count single columns
    mode_of_head = head_modes(mode, group + 1, length, 1, groups, width, causal)
    chosen = mode_of_head[group % len(mode_of_head)]
    first = length - (group % groups + 1) * width
    want = seen(mode, n, length, first, first + width, not causal)
    pattern = chosen.pattern()
    np.testing.assert_array_equal(evaluate(pattern, n), want)
    check_table(pattern, want, bs)


def check_table(pattern, want, bs):
    table, blocked = BlockTable(pattern, bs), by_blocks(want, bs)
    layout = table.layout(len(blocked))
    np.testing.assert_array_equal(layout.toarray(), blocked.any((2, 3)))
    query, key = layout.nonzero()
    np.testing.assert_array_equal(table.masks(query, key), blocked[query, key])
    same_query, same_key = table.representative(query, key)
    assert (same_query <= query).all() and (same_key >= 0).all() and (same_key < len(blocked)).all()
    if not np.triu(want, 1).any():
        assert (same_key <= same_query).all()
    np.testing.assert_array_equal(table.masks(same_query, same_key), blocked[query, key])


@pytest.mark.parametrize("without", ["nothing", "local", "chunk", "summary", "fixed"])
@pytest.mark.parametrize("n, length, bs", [(128, 4, 8), (192, 8, 8), (256, 16, 16), (64, 1, 16), (96, 12, 8)])
def test_strided_in_the_order_of_residues_sees_what_it_sees_in_natural_order(without, n, length, bs):
    first, last = length // 2, length // 2 + 1
    near = nothing
    hidden = np.zeros((n, n), bool)
    if without != "nothing":
        [mode] = head_modes(without, 1, length, 1, 1, 1)
        near, hidden = mode.natural(), seen(without, n, length, length - 1, length)
    want = seen("strided", n, length, first, last) & ~hidden
    order = np.arange(n).reshape(-1, length).T.ravel()  # row r of the plan is position order[r]
    pattern = causal & residue_classes(n, length, near)
    np.testing.assert_array_equal(evaluate(pattern, n), want[np.ix_(order, order)])
    check_table(pattern, want[np.ix_(order, order)], bs)


def test_passes_of_a_merged_mode_are_disjoint_and_complete():
    n, length = 128, 8
    for mode in ("local+strided", "strided+chunk", "fixed+strided", "prefix+strided", "strided", "fixed"):
        [one] = head_modes(mode, 1, length, 1, 1, 2)
        total = np.zeros((n, n), int)
        for pattern, order in one.passes(n):
            rows = np.arange(n).reshape(-1, order).T.ravel()
            total[np.ix_(rows, rows)] += evaluate(pattern, n)
        np.testing.assert_array_equal(
            total, seen(mode, n, length, length - 2, length).astype(int), err_msg=mode
        )


def test_patterns_compose_and_know_what_repeats():
    odd = ~strided(2) & causal
    assert (odd.shift, odd.period, odd.reach) == (1, 2, 0)
    assert evaluate(odd, 4).astype(int).tolist() == [[0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0]]
    both = causal & (local(3) | strided(4))
    assert (both.shift, both.period, both.reach) == (1, 4, 3)
    with pytest.raises(TypeError, match="no truth value"):
        bool(causal)


def test_heads_cycle_through_modes_and_summary_groups():
    found = head_modes(("local", "summary"), 8, 64, 8, num_verts=3, vertsize=2)
    assert len(found) == 6
    assert [mode.names for mode in found] == [("local",), ("summary",)] * 3
    assert [mode.last for mode in found] == [None, 48, None, 64, None, 32]  # heads 1, 3, 5: groups 1, 0, 2
    assert len(head_modes(("local", "summary"), 2, 64, 8, 3, 2)) == 2


# Of the merged mode, what local and strided do alone is planned.
PLAN = """
import time
from peak import peak
from blocksparse.transformer.passes import passes
from blocksparse.plan.modes import head_modes
from blocksparse.plan import make_plan
base = peak()
for n, heads, mode, sizes in (
    (65_536, 8, "fixed", dict(local_attn_ctx=256, num_verts=8, vertsize=1)),
    (1_048_576, 4, "local+strided", dict(local_attn_ctx=1024)),
):
    start = time.process_time()
    for bst, order in passes(n, heads, head_modes(mode, heads, blocksize=32, **sizes), 32):
        make_plan(bst.active, order, heads)
    print(time.process_time() - start, (peak() - base) / 2**30)
"""


def test_planning_takes_seconds_and_memory_of_what_is_active():
    out = subprocess.run(
        [sys.executable, "-c", PLAN],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    ).stdout
    for line, seconds in zip(out.splitlines(), (5, 15), strict=True):
        took, gigabytes = map(float, line.split())
        assert took < seconds and gigabytes < 2, out


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("mode", [*MODES, "previous+summary", "summary+local"])
def test_which_modes_let_every_query_see_its_own_key(mode, causal):
    (one,) = head_modes(mode, 1, 16, 8, 1, 1, causal)
    assert one.sees_itself == evaluate(one.pattern(), 64).diagonal().all()
