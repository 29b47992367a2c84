"""The CPU kernels under the address and undefined-behaviour sanitizers, on good plans and on damaged ones."""

import shutil
import subprocess

import plan_fuzz
import pytest
import tensorflow as tf

from blocksparse.native import libraries
from blocksparse.plan.blob import Word, digest

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
INCLUDE = tf.sysconfig.get_include()


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    return plan_fuzz.build_runner(tmp_path_factory.mktemp("sanitizer"), INCLUDE)


def test_good_plans_run_clean(runner):
    plans = plan_fuzz.good_plans()
    assert plan_fuzz.run_plans(runner, plans, seconds=120) == ["ran"] * len(plans)


@pytest.mark.parametrize("seed", [1, 2])
def test_damaged_plans_are_refused(runner, seed):
    said = plan_fuzz.check(runner, 5000, seed, seconds=120)
    assert (
        "3000 under a good one's hash and 1000 under a damaged one, all refused; 1000 under their own" in said
    )


def changed(plan, word, value, array=None):
    """The plan with one word changed, of an array if a header word that says where one starts is named."""
    plan = plan.copy()
    plan[word if array is None else plan[array] + word] = value
    plan[Word.HASH : Word.LENGTH] = digest(plan)
    return plan


def test_what_kernels_cannot_survive_is_refused(runner):
    """Each was read or written out of bounds, or ran for minutes, before it was looked at."""
    causal, *_, closed = plan_fuzz.good_plans()[:4]
    last_mask = int(causal[Word.KEY_ARRAYS_END + 1])
    cases = {
        "by_key.masks has to be 0 past the column tile": changed(causal, last_mask, 1 << 16),
        "by_query.full has to be at most the tiles visited": changed(
            causal, 0, 1 << 30, Word.QUERY_ARRAYS + 4
        ),
        "by_query.most_row_tiles has to be that of head_tiles": changed(causal, Word.BY_QUERY + 6, 1 << 30),
        "by_key.most_column_tiles has to be that of offset": changed(causal, Word.BY_KEY + 7, 0),
        "by_query.rows has to be tiles that hold every row of a head once": changed(
            closed, 7, 1 << 20, Word.QUERY_ARRAYS + 1
        ),  # what a short row tile repeats
        "the header's spare words has to be 0": changed(causal, 24, 1),
        "key heads has to be a divisor of the heads": changed(causal, Word.KEY_HEADS, 1),
        "the words of key heads has to be 0": changed(causal, Word.DISTINCT_KEYS, 1),
        "closed has to be 0: a key is in two row tiles": changed(causal, Word.CLOSED, 1),
        "closed has to be 0, 1 or 2": changed(causal, Word.CLOSED, 3),
        "by_query.columns has to be visited once by a row tile": changed(causal, 1, 0, Word.QUERY_ARRAYS + 5),
        "the start of by_query.rows has to be": changed(causal, Word.QUERY_ARRAYS + 1, 64),
    }
    said = plan_fuzz.run_plans(runner, [*cases.values()], seconds=60)
    for wanted, says in zip(cases, said, strict=True):
        assert wanted in says, (wanted, says)


def test_a_runner_that_stops_early_is_noticed(tmp_path):
    stops = tmp_path / "stops"
    stops.write_text("#!/bin/sh\necho ran\necho ERROR: AddressSanitizer >&2\nexit 1\n")
    stops.chmod(0o755)
    with pytest.raises(RuntimeError, match="plan 1 of 2: status 1\\nERROR: AddressSanitizer"):
        plan_fuzz.run_plans(stops, plan_fuzz.good_plans()[:2], seconds=60)


def test_it_compiles_for_processors_with_half_precision(tmp_path):
    """-march=native means this on Sapphire Rapids and later, where Eigen's half-precision packets do not compile."""
    known = subprocess.run(["g++", "-march=sapphirerapids", "-E", "-x", "c++", "-"], input="", text=True)
    if known.returncode:
        pytest.skip("this g++ does not know Sapphire Rapids")
    unit = next(unit for unit in libraries.CPU.units if "cpu/forward.cc" in unit.sources)
    text = "".join(f'#include "{libraries.ROOT / source}"\n' for source in unit.sources)
    flags = [*tf.sysconfig.get_compile_flags(), *unit.flags, "-march=sapphirerapids"]
    command = ["g++", *flags, "-fsyntax-only", "-w", "-x", "c++", "-"]
    done = subprocess.run(command, input=text, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[:3000]
