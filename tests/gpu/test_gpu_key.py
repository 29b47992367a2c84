"""The key of a pass: its two spellings, Python's and the launcher's, and what decides each of its parts."""

import ctypes
from dataclasses import fields, replace

import numpy as np
import pytest

from blocksparse.gpu.key import LONG, Key, key_of, parse
from blocksparse.plan.blob import pack
from blocksparse.plan.blocks import build_blocks
from blocksparse.plan.plan import make_plan

BLOCK = 8
LOWER, DIAGONAL = np.tri(48, dtype=bool), np.eye(48, dtype=bool)
TWO_HEADS = np.stack([LOWER, DIAGONAL])
SMALL, TALL, WIDE = ((16, 16), (16, 16)), ((64, 32), (32, 128)), ((16, 128), (128, 16))
FORWARD = "forward-f16-d64-v64-m64-n64-g32-o0-w0-s1-r0-c0-sm90"
BACKWARD = "backward-tf32-d40-v128-m32-n64-g8-M64-N128-G16-o1-w1-s0-r1-c2-sm80"


def plan_of(layout, tiles, residues=1, kv_heads=None):
    return make_plan(build_blocks(layout, BLOCK, heads=2), residues, 2, *tiles, kv_heads)


PLANS = {
    "long rows": plan_of(np.ones((48, 48), bool), SMALL),
    "short rows": plan_of(LOWER, TALL),
    "closed, one column tile": plan_of(DIAGONAL, SMALL),
    "closed": plan_of(np.kron(np.eye(4, dtype=bool), np.ones((12, 12), bool)), ((128, 16), (16, 16))),
    "a plan a head": plan_of(TWO_HEADS, SMALL),
    "permuted": plan_of(LOWER, WIDE, 4),
    "one head permuted": plan_of(LOWER, WIDE, [1, 4]),
    "one key head": plan_of(TWO_HEADS, SMALL, 4, kv_heads=1),
}
CALLS = [
    ("f16", 64, 64, 4, 90),
    ("bf16", 128, 32, 1, 80),
    ("tf32", 40, 256, 1, 120),
    ("f32", 8, 8, (2**31 - 1) // (2 * 384 * 8), 89),
    ("f32", 8, 8, 2**31 // (2 * 384 * 8) + 1, 89),
]


def key_of_launcher(
    library, plan, op, dtype, head_dim, value_dim, batch, capability, joined, segments, bounded
):
    orders = set(plan.residues.tolist())
    blob, out = pack(plan), ctypes.create_string_buffer(256)
    library.blocksparse_gpu_key(
        blob.ctypes.data_as(ctypes.c_void_p),
        2 if len(orders) > 1 else int(orders != {1}),
        int(joined),
        int(segments),
        int(bounded),
        int(op == "backward"),
        dtype.encode(),
        ctypes.c_int64(batch),
        head_dim,
        value_dim,
        capability,
        out,
        len(out),
    )
    return out.value.decode()


@pytest.mark.parametrize(
    ("joined", "segments", "bounded"),
    [(False, False, False), (True, False, True), (False, True, False), (True, True, True)],
)
@pytest.mark.parametrize("op", ["forward", "backward"])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_the_launcher_makes_the_same_key(library, plan, op, joined, segments, bounded):
    for call in ((*one, joined, segments, bounded) for one in CALLS):
        assert key_of_launcher(library, plan, op, *call) == str(key_of(plan, op, *call))


def test_the_table_of_plans_has_every_flag():
    found = [key_of(plan, "forward", *call) for plan in PLANS.values() for call in CALLS]
    for flag in ("permuted", "wide", "shared", "long_rows"):
        assert {getattr(key, flag) for key in found} == {False, True}, flag
    assert {key.closed for key in found} == {0, 1, 2}
    assert {key.group for key in found} == {1, 2}


@pytest.mark.parametrize(
    "text",
    [
        FORWARD,
        BACKWARD,
        *(
            FORWARD.replace("-sm", f"-{new}-sm")
            for new in ("j1", "k16", "j1-k2", "i1", "j1-i2", "j1-k2-i1-b1")
        ),
    ],
)
def test_parse_is_the_inverse_of_str(text):
    assert str(parse(text)) == text


def test_a_key_tells_every_difference():
    key = parse(BACKWARD)
    other = parse("backward-f16-d64-v64-m64-n128-g16-M16-N16-G8-o0-w0-s1-r0-c1-j1-k2-i2-b1-sm90")
    for field in fields(Key)[1:]:
        one = replace(key, segments=field.name == "orders")
        assert str(replace(one, **{field.name: getattr(other, field.name)})) != str(one), field.name


@pytest.mark.parametrize(
    "text",
    [
        "",
        "forward",
        FORWARD + "-x",
        FORWARD.replace("-sm", "-j0-sm"),
        FORWARD.replace("-sm", "-i1-j1-sm"),
        FORWARD.replace("-sm", "-b1-i1-sm"),
        FORWARD.replace("-sm", "-i3-sm"),
        FORWARD.replace("-sm", "-k0-sm"),
        FORWARD.replace("-sm", "-k2-j1-sm"),
        FORWARD.replace("f16", "f64"),
        FORWARD.replace("forward", "backward"),
        BACKWARD.replace("backward", "forward"),
        BACKWARD.replace("-G16", ""),
    ],
)
def test_what_is_no_key_is_refused(text):
    with pytest.raises(ValueError, match="names no kernel; wanted"):
        parse(text)


@pytest.mark.parametrize("column_tiles", [LONG - 1, LONG])
def test_rows_are_long_from_twenty_column_tiles_on(column_tiles):
    plan = plan_of(np.ones((48, 2 * column_tiles), bool), SMALL)
    assert key_of(plan, "forward", "f16", 64, 64).long_rows == (column_tiles >= 20)
