"""Which tiles and kernels a GPU gets, by its generation and the Triton at hand."""

import json
import sys

import pytest

from blocksparse.gpu import manifest, tuning
from blocksparse.gpu.key import Key, parse


@pytest.fixture
def triton(monkeypatch, tmp_path):
    """Sets the version that is found; None: none is."""
    package = tmp_path / "triton" / "__init__.py"
    package.parent.mkdir()
    monkeypatch.syspath_prepend(tmp_path)

    def install(version):
        if version is None:
            monkeypatch.setitem(sys.modules, "triton", None)
        package.write_text(f"__version__ = '{version}'\nraise AssertionError('imported')\n")
        tuning.table.cache_clear()

    yield install
    tuning.table.cache_clear()


def functions(capability, by_query, by_key):
    sides = [(*tile, 32) for tile in (by_query, by_key)]
    flags = dict(permuted=False, wide=False, shared=True, long_rows=True, closed=0, capability=capability)
    forward = Key("forward", "f16", 64, 64, sides[0], None, **flags)
    backward = Key("backward", "f16", 64, 64, *sides, **flags)
    return [launch.function for key in (forward, backward) for launch in manifest.launches(key)]


@pytest.mark.parametrize(
    "version, capability, roles",
    [("3.9.0", 90, True), ("3.10.1+git", 90, True), (None, 90, True), ("3.8.1", 90, False)]
    + [("3.9.0", capability, False) for capability in (80, 89, 100, 120)],
)
def test_warp_roles_are_for_hopper_and_a_triton_that_knows_them(triton, version, capability, roles):
    triton(version)
    chosen = tuning.choose("float16", 64, 64, 32, 4096.0, capability)
    assert (chosen[0] == (128, 64)) == roles
    named = functions(capability, *chosen)
    assert [name.removesuffix("_roles") for name in named] == [
        "attention_forward",
        "attention_query_gradient",
        "attention_key_gradient",
    ]
    assert any(name.endswith("_roles") for name in named) == roles


def test_plain_kernels_take_the_tiles_of_roles(triton):
    """A model saved with them may be loaded beside an older Triton."""
    triton("3.9.0")
    chosen = tuning.choose("float16", 64, 64, 32, 4096.0, 90)
    triton("3.6.0")
    assert not any(name.endswith("_roles") for name in functions(90, *chosen))
    assert not any(name.endswith("_roles") for name in functions(100, *chosen))


DENSE = dict(dtype="half", dim=64, work=None, share=0.4, by_query=[192, 128], by_key=[128, 64], roles=True)
THREE = dict(warps=4, stages=4, registers=128, split=False, heaviest_first=False, roles=64)


@pytest.mark.parametrize(
    "version, capability, roles",
    [("3.9.0", 90, True), ("3.8.1", 90, False)] + [("3.9.0", each, False) for each in (75, 80, 100, 120)],
)
def test_a_table_may_give_dense_rows_tiles_that_three_warpgroups_compute(
    triton, monkeypatch, tmp_path, version, capability, roles
):
    for path in tuning.FOLDER.glob("*.json"):
        lists = json.loads(path.read_text())
        if path.stem == "sm_90":
            names = dict(dtype="half", dim=64, m=192, n=128, long=True)
            kernels = ("attention_forward", "attention_query_gradient")
            lists["tiles"].insert(0, DENSE)
            lists["launches"] += [dict(kernel=kernel) | names | THREE for kernel in kernels]
        (tmp_path / path.name).write_text(json.dumps(lists))
    monkeypatch.setattr(tuning, "FOLDER", tmp_path)
    triton(version)
    few, many = (
        tuning.choose("float16", 64, 64, 32, 4096.0, capability, share=share)[0] for share in (0.1, 0.5)
    )
    assert few != (192, 128) and (many == (192, 128)) == roles
    forward, query_gradient, _ = functions(capability, (192, 128), (128, 64))
    assert forward.endswith("_roles") == query_gradient.endswith("_roles") == roles


@pytest.mark.parametrize(
    "dim, work, share, rows",
    [
        (64, 6144, 0.5, 192),
        (64, 768, 0.5, 192),
        (64, 500, 0.5, 128),
        (64, 6144, 0.1, 128),
        (32, 6144, 0.5, 192),
        (32, 1536, 0.5, 64),
        (16, 6144, 0.5, 64),
        (128, 6144, 0.5, 128),
    ],
)
def test_hopper_s_dense_rows_have_tiles_of_192_where_those_were_faster(triton, dim, work, share, rows):
    triton("3.9.0")
    (row_tile, _), _ = tuning.choose("float16", dim, dim, 32, float(work), 90, share=share)
    assert row_tile == rows
    (row_tile, _), _ = tuning.choose("float16", dim, dim, 32, float(work), 90, reordered=True, share=share)
    assert row_tile != 192


@pytest.mark.parametrize("dim", [32, 64, 96, 128])
@pytest.mark.parametrize(
    "version, capability, small", [("3.9.0", 90, True), ("3.8.1", 90, False), ("3.9.0", 80, False)]
)
def test_neighbours_that_see_other_columns_have_small_tiles_of_their_own(
    triton, version, capability, small, dim
):
    triton(version)

    def chosen(work, scatter, **more):
        return tuning.choose("float16", dim, dim, 64, work, capability, scatter=scatter, **more)

    assert (chosen(2000.0, 1.9) == ((64, 128), (64, 128))) == small
    assert (chosen(500.0, 1.5, share=0.5) == ((64, 128), (64, 128))) == small
    for alike in (chosen(2000.0, 1.1), chosen(200.0, 1.9)):
        assert (64, 128) not in alike
    named = functions(capability, (64, 128), (64, 128))
    assert all(name.endswith("_roles") == small for name in named)


def test_small_tiles_take_a_head_after_the_other(triton):
    triton("3.9.0")
    for text in (
        "forward-f16-d64-v64-m64-n128-g64-o0-w0-s1-r0-c0-sm90",
        "backward-bf16-d128-v128-m64-n128-g64-M64-N128-G64-o0-w0-s1-r1-c0-sm90",
    ):
        for launch in manifest.launches(parse(text)):
            assert launch.constexprs["HEADS_IN_TURN"] and launch.constexprs["M"] == 64
    (other,) = manifest.launches(parse("forward-f16-d64-v64-m128-n64-g64-o0-w0-s1-r0-c0-sm90"))
    assert "HEADS_IN_TURN" not in other.constexprs


def test_dense_rows_run_by_three_warpgroups(triton):
    triton("3.9.0")
    chosen = tuning.choose("float16", 64, 64, 32, 6144.0, 90, share=0.5)
    assert all(name.endswith("_roles") for name in functions(90, *chosen))


@pytest.mark.parametrize("version, capability", [("3.8.1", 90), ("3.9.0", 80), ("3.9.0", 100)])
def test_plain_kernels_take_a_third_of_a_row_tile_of_192(triton, version, capability):
    triton(version)
    forward = parse(f"forward-f16-d64-v64-m192-n128-g32-o0-w0-s1-r1-c0-sm{capability}")
    (launch,) = manifest.launches(forward)
    assert (launch.function, launch.constexprs["M"], launch.constexprs["PARTS"]) == (
        "attention_forward",
        64,
        3,
    )
    assert launch.grid[0] == "3*q.most_tiles*heads*batch"
    (cut, _) = manifest.launches(parse(str(forward).replace("-sm", "-i1-sm")))
    assert cut.grid[0].startswith("4*q.tiles") and cut.constexprs["PARTS"] == 3


def test_a_third_of_a_row_tile_is_never_one_with_warp_roles(triton):
    """On Hopper too, whose table has small tiles with them: roles take whole row tiles."""
    triton("3.9.0")
    for dim, n in ((64, 64), (128, 128)):
        for launch in manifest.launches(
            parse(f"backward-f16-d{dim}-v{dim}-m192-n{n}-g32-M192-N{n}-G32-o0-w0-s1-r0-c0-sm90")
        ):
            assert not launch.function.endswith("_roles")
            assert (launch.constexprs["M"], launch.constexprs["PARTS"]) == (64, 3)


def test_programs_walk_over_short_rows_only(triton):
    triton("3.9.0")
    for work, long_rows in ((128.0, False), (4096.0, True)):
        by_query, by_key = tuning.choose("float16", 64, 64, 32, work, 90)
        key = parse("forward-f16-d64-v64-m{}-n{}-g32-o0-w0-s1-r{:d}-c0-sm90".format(*by_query, long_rows))
        (forward,) = manifest.launches(key)
        count = "q.most_tiles*heads*batch"
        assert forward.args[-1] == f"i:{count}"
        assert forward.grid[0] == (count if long_rows else f"min(3*multiprocessors,{count})")
        assert forward.constexprs["TURNS"] == (1 if long_rows else 2)


@pytest.mark.parametrize(
    "machine, common",
    [
        ((90,), 90),
        ((90, 90), 90),
        ((90, 80), 80),
        ((100, 90), 90),
        ((90, 120), 120),
        ((121, 100), 121),
        ((86, 120), 86),
        ((75, 120), 75),
    ],
)
def test_gpus_of_several_generations_share_tiles_that_fit_in_all(machine, common):
    """99 KiB of shared memory a block have 8.6, 8.9 and 12.x; the kernels are each GPU's own, by the key's end."""
    assert tuning.common(machine) == common
