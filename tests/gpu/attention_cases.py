"""Small attentions with their truth in float64, for whatever runs the kernels without TensorFlow: Triton's interpreter,
the CUDA sources' emulation, a bare GPU.
"""

import sys
import types
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.modules["blocksparse"] = types.ModuleType(
    "blocksparse"
)  # the package's own __init__ would import TensorFlow
sys.modules["blocksparse"].__path__ = [str(ROOT / "blocksparse")]
sys.path.insert(1, str(ROOT / "tests"))

import layouts  # noqa: E402
import numpy as np  # noqa: E402
import oracle  # noqa: E402

from blocksparse.gpu.key import key_of  # noqa: E402
from blocksparse.plan import build_blocks, make_plan  # noqa: E402


def to_bfloat16(array):
    bits = array.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bfloat16(array):
    return (array.astype(np.uint32) << 16).view(np.float32)


ENCODE = {"f16": lambda x: x.astype(np.float16), "bf16": to_bfloat16, "f32": lambda x: x.astype(np.float32)}
DECODE = {"f16": lambda x: x, "bf16": from_bfloat16, "f32": lambda x: x}
NAMES = {"f16": "float16", "bf16": "bfloat16", "f32": "float32"}
TOLERANCE = {"f16": 2e-3, "bf16": 1.2e-2, "f32": 2e-6}


@dataclass
class Case:
    """One attention: who sees whom by `sees(head, query, key)`, in layout rows; order permutes them in the tensor."""

    sees: object
    bs: int = 16
    time: tuple = (64, 64)
    heads: int = 2
    dims: tuple = (16, 16)
    dtype: str = "f32"
    tiles: tuple = ((32, 32), (32, 32))
    order: object = 1
    batch: int = 2
    scale: float = 0.3
    wide: bool = False
    split: bool | None = None
    poison: dict = field(default_factory=dict)
    group: int = 1  # query heads that read one key head
    segments: str | None = None  # a kind of layouts.SEGMENTS
    missing: int = 0  # so many rows fewer than the plan's have the tensors
    then: tuple = ()  # passes after this one over other keys, in one softmax with it: fields in place of this one's

    @property
    def there(self):
        """Rows of the tensors of queries and of keys."""
        return self.time[0] - self.missing, self.time[1] - self.missing

    @property
    def passes(self):
        return self, *(replace(self, then=(), **fields) for fields in self.then)


def grids(case):
    """bool [heads, query_time, key_time] in layout rows."""
    query, key = np.arange(case.time[0])[:, None], np.arange(case.time[1])[None, :]
    shape = (case.heads, *case.time)
    return np.stack(
        [np.broadcast_to(case.sees(head, query, key), case.time) for head in range(case.heads)]
    ).reshape(shape)


def plan_of(case):
    bs, seen = case.bs, grids(case)
    blocks = seen.reshape(case.heads, case.time[0] // bs, bs, case.time[1] // bs, bs)

    def callback(blk_shape, head, query, key, _):
        return blocks[head, query, :, key]

    built = build_blocks(blocks.any((2, 4)), bs, callback)
    return make_plan(built, case.order, case.heads, *case.tiles, case.heads // case.group)


def visible(case):
    """Who sees whom in any pass, bool [heads, query_time, key_time] in tensor rows; with segments, [batch, ...]."""
    (query_time, key_time), union = case.time, np.zeros((case.heads, *case.time), int)
    for one in case.passes:
        for head, order in enumerate(np.broadcast_to(one.order, case.heads)):
            rows = tensor_row(np.arange(query_time), query_time, order)
            columns = tensor_row(np.arange(key_time), key_time, order)
            union[head][np.ix_(rows, columns)] += grids(one)[head]
    assert union.max() <= 1, "two passes show a query the same key"
    union = union[:, : case.there[0], : case.there[1]]
    return union == 1 if case.segments is None else (union == 1) & numbers(case)[1]


def numbers(case):
    """(segment numbers of queries and keys, who may meet)"""
    return layouts.segments(np.random.default_rng(1), case.segments, case.batch, *case.there)


def tensor_row(rows, time, order):
    run = time // order
    return rows % run * order + rows // run


def passes_of(case, capability=90):
    """(key, plan) of every pass in the op's order: forward over every plan, then backward."""
    plans = [plan_of(one) for one in case.passes]
    for op in ("forward", "backward"):
        for number, plan in enumerate(plans):
            key = key_of(
                plan,
                op,
                case.dtype,
                *case.dims,
                case.batch,
                capability,
                joined=number > 0,
                segments=case.segments is not None,
                bounded=case.missing > 0,
            )
            yield replace(key, wide=case.wide), plan


def eval_(expression, values):
    """An integer expression over names such as q.most_tiles."""
    return eval(expression.replace("q.", "q_").replace("k.", "k_").replace("/", "//"), {}, values)


def arrays_of(case, tensors, dout, dlse):
    """Every tensor by its name in a manifest, encoded; results are NaN."""
    encode, batch, query_time = ENCODE[case.dtype], case.batch, case.there[0]
    arrays = {name: encode(x) for name, x in zip("qkv", tensors, strict=True)} | dict(dout=encode(dout))
    results = dict(out=dout, dq=tensors[0], dk=tensors[1], dv=tensors[2])
    arrays |= {name: encode(np.full(like.shape, np.float32(np.nan))) for name, like in results.items()}
    arrays["lse"] = np.full((batch, case.heads, query_time), np.nan, np.float32)
    if case.segments:
        for name, x in zip(("query_segments", "key_segments"), numbers(case)[0], strict=True):
            arrays[name] = np.ascontiguousarray(x, np.int32)
    return arrays | dict(dlse=dlse.astype(np.float32))


def plan_arrays(plan):
    """Every array of a plan by its name in a manifest."""
    fields = ("head_tiles", "rows", "row_count", "offset", "full", "columns", "mask", "masks")
    arrays = dict(head_index=plan.head_index.astype(np.int32), residues=plan.residues.astype(np.int32))
    for side, tiles in (("q", plan.by_query), ("k", plan.by_key)):
        for name in fields:
            arrays[f"{side}.{name}"] = np.ascontiguousarray(getattr(tiles, name)).view(np.int32)
    own = dict(key_index=plan.key_index, key_residues=plan.residues[:: plan.group])
    return arrays | {name: np.ascontiguousarray(array, np.int32) for name, array in own.items()}


def results_of(case, arrays):
    """The results among `arrays`, decoded."""
    results = {name: DECODE[case.dtype](arrays[name]) for name in ("out", "dq", "dk", "dv")}
    return results | dict(lse=arrays["lse"])


def values_of(case, plan):
    """Every number that a manifest's expressions name."""
    values = dict(batch=case.batch, heads=case.heads, query_time=case.there[0], key_time=case.there[1])
    values |= dict(query_rows=case.time[0], key_rows=case.time[1])
    values |= dict(kv_heads=case.heads // case.group)
    values |= dict(scale=case.scale, scale_log2=case.scale * 1.4426950408889634)
    for side, tiles in (("q", plan.by_query), ("k", plan.by_key)):
        most = int(np.diff(tiles.head_tiles).max())
        values |= {f"{side}_most_tiles": most, f"{side}_tiles": len(tiles.rows)}
        values |= {f"{side}_column_tiles": len(tiles.columns)}
    return values


def draw(case, seed=0):
    random = np.random.default_rng(seed)
    (query_time, key_time), (head_dim, value_dim) = case.there, case.dims

    def normal(*shape):
        return DECODE[case.dtype](ENCODE[case.dtype](random.standard_normal(shape)))

    q = normal(case.batch, query_time, case.heads * head_dim)
    k = normal(case.batch, key_time, case.heads // case.group * head_dim)
    v = normal(case.batch, key_time, case.heads // case.group * value_dim)
    dout = normal(case.batch, query_time, case.heads * value_dim)
    return (q, k, v), dout, random.standard_normal((case.batch, case.heads, query_time))


def errors(case, attention):
    """{result: relative error}; where the oracle is infinite the result has to be the same."""
    tensors, dout, dlse = draw(case)
    got = attention(case, tensors, dout, dlse)
    wanted = oracle.attention(*tensors, visible(case), case.scale, dout, dlse)
    report = {}
    for name, truth in zip(("out", "lse", "dq", "dk", "dv"), wanted, strict=True):
        value, finite = got[name].astype(np.float64), np.isfinite(truth)
        same = np.array_equal(value[~finite], truth[~finite])
        error = np.linalg.norm(value[finite] - truth[finite]) / max(np.linalg.norm(truth[finite]), 1e-30)
        report[name] = float(error) if same and np.isfinite(error) else "wrong infinities or NaN"
    return report


def spread(case, attention):
    """Rows that a poisoned number reached beyond its due, by result: a NaN key's due are the queries that see it."""
    tensors, dout, dlse = draw(case)
    mask = visible(case)
    (tensor, row), head_dim = *case.poison.items(), case.dims[0]
    tensors["qkv".index(tensor)][0, row, 0:head_dim] = np.nan
    got = attention(case, tensors, dout, dlse)
    reached = {
        name: np.isnan(got[name]).reshape(case.batch, got[name].shape[1], -1, case.dims[0]).any(-1)
        for name in ("out", "dq", "dk", "dv")
    }
    due_queries = np.zeros((case.batch, case.time[0], case.heads), bool)
    due_keys = np.zeros((case.batch, case.time[1], case.heads // case.group), bool)
    for reader in range(case.group):
        seers = mask[reader, :, row]
        due_queries[0, :, reader] = seers
        due_keys[0, :, 0] |= mask[reader][seers].any(0)
    due = dict(out=due_queries, dq=due_queries, dk=due_keys, dv=due_keys)
    return {name: int((reached[name] != due[name]).sum()) for name in due}


def causal(head, query, key):
    return query >= key


def local(window):
    return lambda head, query, key: (query >= key) & (query - key < window)


def chunk(size):
    return lambda head, query, key: (query >= key) & (query // size == key // size)


def fixed(size, width, groups):
    def sees(head, query, key):
        group = head % groups
        summary = (key % size >= size - (group + 1) * width) & (key % size < size - group * width)
        return (query >= key) & (summary | (query // size == key // size))

    return sees


def with_empty_rows(head, query, key):
    return (query >= key) & (query % 16 > 5)


def from_32_on(head, query, key):
    return query + 0 * key >= 32


def from_16_on(head, query, key):
    return (key >= 16) & (query >= 8) & (query >= key)


def uneven(head, query, key):
    return (query >= key) & ((head == 0) | (key < 16))


def older_of_class(stride, window):
    """In the order of residue classes modulo `stride` of 64 positions: the same class, `window` back or more."""

    def sees(head, query, key):
        query, key = tensor_row(query, 64, stride), tensor_row(key, 64, stride)
        return (query % stride == key % stride) & (query - key >= window)

    return sees


def of_two_kinds(head, query, key):
    return np.where(head % 2 == 0, local(20)(head, query, key), fixed(32, 8, 2)(head, query, key))


SMALL = ((16, 16), (16, 16))
STRIDED = dict(sees=older_of_class(4, 20), order=4, tiles=SMALL)
CASES = {
    "causal": Case(causal),
    "causal split": Case(causal, tiles=((16, 16), (16, 16)), split=True),
    "causal merged": Case(causal, tiles=((16, 16), (16, 16)), split=False),
    "local": Case(local(20), bs=8),
    "fixed, per head": Case(fixed(32, 8, 2), bs=8),
    "strided, 24 rows a class": Case(chunk(24), bs=8, time=(72, 72), order=3),
    "closed, several column tiles": Case(
        chunk(48), bs=8, time=(96, 96), tiles=((64, 16), (16, 16)), order=2, dtype="f16"
    ),
    "one order a head": Case(
        lambda h, q, k: np.where(h == 0, local(20)(h, q, k), chunk(16)(h, q, k)), order=[1, 4]
    ),
    "empty rows": Case(with_empty_rows),
    "rows that see nothing or all": Case(from_32_on, time=(96, 64)),
    "closed, rows that see nothing or all": Case(from_32_on, dtype="f16"),
    "uneven heads": Case(uneven),
    "rectangular": Case(lambda h, q, k: q + 32 >= k, time=(32, 64)),
    "value_dim differs": Case(causal, dims=(24, 40), tiles=SMALL, time=(32, 32)),
    "dims of 8": Case(causal, dims=(8, 8), time=(32, 32)),
    "dims of 96": Case(causal, dims=(96, 96), time=(32, 32)),
    "wide tiles": Case(local(50), bs=32, time=(128, 128), tiles=((64, 128), (128, 64)), batch=1),
    "blocks of 64 in tiles of 32": Case(causal, bs=64, time=(64, 64)),
    "wide offsets": Case(causal, time=(32, 32), wide=True),
    "negative scale": Case(causal, time=(32, 32), scale=-2.0),
    "scale of zero": Case(causal, time=(32, 32), scale=0.0),
    "float16": Case(causal, dtype="f16"),
    "float16, dims of 160": Case(causal, dtype="f16", dims=(160, 160), heads=1, batch=1),
    "closed, dims differ": Case(chunk(16), dims=(24, 40), dtype="bf16", wide=True),
    "float16, permuted": Case(chunk(16), dtype="f16", order=4),
    "bfloat16": Case(local(20), bs=8, dtype="bf16"),
}
CASES |= {
    "joined": Case(local(20), then=(STRIDED,)),
    "joined, float16": Case(local(20), dtype="f16", then=(STRIDED,)),
    "joined, bfloat16, dims differ": Case(local(20), dtype="bf16", dims=(24, 40), then=(STRIDED,)),
    "joined, closed first": Case(**STRIDED, dtype="f16", then=(dict(sees=local(20), order=1),)),
    "joined, three passes": Case(local(20), then=(STRIDED, dict(sees=lambda h, q, k: (q < k) & (h == 1)))),
    "joined, rows that neither shows a key": Case(
        lambda h, q, k: with_empty_rows(h, q, k) & (k < 32),
        then=(dict(sees=lambda h, q, k: (q >= k) & (q % 16 > 3) & (k >= 32)),),
    ),
    "joined, rows that one shows no key, split": Case(
        from_16_on, tiles=SMALL, split=True, then=(dict(sees=lambda h, q, k: (k < 16) & (q < 48)),)
    ),
}
CASES |= {
    "key heads": Case(causal, heads=4, group=2),
    "key heads, split, one for all": Case(causal, heads=3, group=3, tiles=SMALL, split=True, batch=1),
    "key heads, a layout a head": Case(of_two_kinds, bs=8, heads=4, group=2),
    "key heads, small granules": Case(
        of_two_kinds, bs=8, heads=4, group=4, tiles=((64, 64), (64, 64)), batch=1
    ),
    "key heads, closed": Case(chunk(16), bs=8, order=4, dtype="f16", heads=4, group=2),
    "key heads, joined, dims differ": Case(
        local(20), dtype="bf16", dims=(24, 40), heads=4, group=2, then=(STRIDED,)
    ),
    "key heads, wide": Case(
        lambda h, q, k: q + 32 >= k, time=(32, 64), heads=2, group=2, wide=True, dtype="f16"
    ),
    "segments": Case(causal, tiles=SMALL, segments="sorted"),
    "segments in no order": Case(local(20), bs=8, segments="scattered"),
    "segments, one": Case(causal, segments="one", batch=1),
    "segments, per head": Case(fixed(32, 8, 2), bs=8, segments="sorted", dtype="f16"),
    "segments, one order a head": Case(
        lambda h, q, k: np.where(h == 0, local(20)(h, q, k), chunk(16)(h, q, k)),
        order=[1, 4],
        segments="padded",
    ),
    "segments, closed": Case(chunk(16), dtype="f16", order=4, segments="padded"),
    "segments, closed, several column tiles": Case(
        chunk(48), bs=8, time=(96, 96), tiles=((64, 16), (16, 16)), order=2, dtype="f16", segments="sorted"
    ),
    "segments, rectangular, many column tiles": Case(
        lambda h, q, k: q + 32 * 9 >= k, time=(32, 320), tiles=SMALL, segments="sorted", batch=1
    ),
    "segments, wide tiles": Case(
        local(50), bs=32, time=(128, 128), tiles=((64, 128), (128, 64)), batch=2, segments="padded"
    ),
    "segments, key heads": Case(of_two_kinds, bs=8, heads=4, group=2, segments="padded"),
    "segments, key heads, order": Case(
        chunk(16), bs=8, order=[1, 1, 4, 4], heads=4, group=2, segments="sorted", dtype="f16"
    ),
    "segments, joined": Case(local(20), dtype="bf16", then=(STRIDED,), segments="sorted"),
}
CASES |= {
    "fewer rows": Case(causal, bs=8, missing=13),
    "fewer rows, split, wide": Case(causal, tiles=SMALL, split=True, wide=True, missing=1, batch=3),
    "fewer rows, dims differ": Case(local(20), dtype="bf16", dims=(24, 40), missing=20),
    "fewer rows, closed": Case(chunk(16), bs=8, order=4, dtype="f16", missing=9),
    "fewer rows, joined, key heads": Case(local(20), heads=4, group=2, then=(STRIDED,), missing=7),
    "fewer rows, segments": Case(
        lambda h, q, k: np.where(h == 0, local(20)(h, q, k), chunk(16)(h, q, k)),
        order=[1, 4],
        segments="padded",
        missing=5,
    ),
    "fewer rows, segments, looking ahead": Case(
        lambda h, q, k: abs(q - k) < 20, segments="one", dtype="f16", missing=11
    ),
}
ROWS_192 = (192, 32), (192, 64)
CASES |= {
    "rows of 192": Case(causal, bs=32, time=(256, 256), tiles=ROWS_192, batch=1),
    "rows of 192, float16, split, a layout a head": Case(
        of_two_kinds, bs=8, time=(200, 200), tiles=((192, 64), (192, 32)), dtype="f16", batch=1, split=True
    ),
    "rows of 192, small columns": Case(
        local(40), time=(224, 112), tiles=((192, 16), (192, 16)), heads=1, batch=2
    ),
    "rows of 192, order, dims differ": Case(
        chunk(50), bs=8, time=(240, 240), order=3, tiles=ROWS_192, dtype="bf16", dims=(24, 40), batch=1
    ),
    "rows of 192, closed": Case(chunk(96), time=(192, 192), tiles=ROWS_192, dtype="f16", heads=1),
    "rows of 192, closed, several column tiles": Case(
        chunk(192), bs=32, time=(384, 384), tiles=((192, 64), (192, 64)), dtype="f16", heads=1, batch=1
    ),
    "rows of 192, key heads": Case(
        causal, bs=32, time=(224, 224), tiles=ROWS_192, heads=4, group=2, batch=1, dtype="f16"
    ),
    "rows of 192, joined": Case(
        local(64),
        bs=32,
        time=(256, 256),
        tiles=ROWS_192,
        batch=1,
        then=(dict(sees=lambda h, q, k: q - k >= 64, tiles=ROWS_192),),
    ),
    "rows of 192, segments": Case(causal, bs=32, time=(256, 256), tiles=ROWS_192, segments="sorted", batch=2),
    "rows of 192, segments in no order, closed": Case(
        chunk(96), bs=8, time=(192, 192), tiles=ROWS_192, dtype="f16", segments="scattered", heads=1
    ),
    "rows of 192, segments, fewer rows": Case(
        causal, bs=32, time=(256, 256), tiles=ROWS_192, segments="padded", missing=70, batch=2, heads=1
    ),
    "rows of 192, fewer rows": Case(local(150), time=(208, 208), tiles=ROWS_192, missing=17, batch=2),
}
POISONED = {
    "NaN key, rows of 192": Case(
        causal, bs=16, time=(208, 208), tiles=((192, 32), (192, 32)), batch=1, poison={"k": 170}
    ),
    "NaN key, key heads": Case(of_two_kinds, bs=8, heads=4, group=2, poison={"k": 17}),
    "NaN key, joined": Case(local(20), bs=8, poison={"k": 17}, then=(dict(STRIDED, bs=8),)),
    "NaN key, joined, closed": Case(
        local(20), bs=8, dtype="f16", poison={"k": 17}, then=(dict(STRIDED, bs=8),)
    ),
    "NaN key": Case(local(20), bs=8, poison={"k": 17}),
    "NaN key, split": Case(causal, split=True, tiles=SMALL, poison={"k": 20}),
    "NaN key, closed": Case(chunk(16), bs=8, order=4, dtype="f16", poison={"k": 20}),
    "NaN key, float16": Case(causal, dtype="f16", poison={"k": 20}),
}
