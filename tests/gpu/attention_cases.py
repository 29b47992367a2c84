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

import numpy as np  # noqa: E402

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


def grids(case):
    """bool [heads, query_time, key_time] in layout rows."""
    query, key = np.arange(case.time[0])[:, None], np.arange(case.time[1])[None, :]
    shape = (case.heads, *case.time)
    return np.stack(
        [np.broadcast_to(case.sees(head, query, key), case.time) for head in range(case.heads)]
    ).reshape(shape)


def plan_of(case, seen):
    bs = case.bs
    blocks = seen.reshape(case.heads, case.time[0] // bs, bs, case.time[1] // bs, bs)

    def callback(blk_shape, head, query, key, _):
        return blocks[head, query, :, key]

    built = build_blocks(blocks.any((2, 4)), bs, callback)
    return make_plan(built, case.order, case.heads, *case.tiles)


def tensor_row(rows, time, order):
    run = time // order
    return rows % run * order + rows // run


def oracle(case, seen, q, k, v, dout, dlse):
    """Values and gradients in float64, in tensor rows."""
    batch, (query_time, key_time), heads = case.batch, case.time, case.heads
    order = np.broadcast_to(case.order, heads)
    mask = np.zeros_like(seen)
    for head in range(heads):
        rows = tensor_row(np.arange(query_time), query_time, order[head])
        columns = tensor_row(np.arange(key_time), key_time, order[head])
        mask[head][np.ix_(rows, columns)] = seen[head]

    def split(x):
        return x.astype(np.float64).reshape(batch, x.shape[1], heads, -1).transpose(0, 2, 1, 3)

    def join(x):
        return x.transpose(0, 2, 1, 3).reshape(batch, x.shape[2], -1)

    q, k, v, dout = map(split, (q, k, v, dout))
    with np.errstate(all="ignore"):
        s = np.where(mask, case.scale * q @ k.swapaxes(2, 3), -np.inf)
        top = s.max(-1, keepdims=True, initial=-np.inf)
        p = np.where(mask, np.exp(s - np.where(np.isinf(top), 0, top)), 0)
        total = p.sum(-1, keepdims=True)
        lse = np.where(total == 0, -np.inf, np.log(total) + top)[..., 0]
        p = p / np.where(total == 0, 1, total)
    out = p @ v
    dp = dout @ v.swapaxes(2, 3)
    ds = p * (dp - (out * dout).sum(-1, keepdims=True) + dlse[..., None])
    results = dict(out=join(out), lse=lse)
    results |= dict(
        dq=join(case.scale * ds @ k),
        dk=join(case.scale * ds.swapaxes(2, 3) @ q),
        dv=join(p.swapaxes(2, 3) @ dout),
    )
    return results, mask


def keys_of(case, plan, capability=90):
    """The forward and the backward key, as the op makes them."""
    for op in ("forward", "backward"):
        key = key_of(plan, op, case.dtype, *case.dims, case.batch, capability)
        yield replace(key, wide=case.wide)


def eval_(expression, values):
    """An integer expression over names such as q.most_tiles."""
    return eval(expression.replace("q.", "q_").replace("k.", "k_"), {}, values)


def arrays_of(case, plan, tensors, dout, dlse):
    """Every tensor and plan array of both passes by its name in a manifest, encoded; results are NaN."""
    encode, batch, query_time = ENCODE[case.dtype], case.batch, case.time[0]
    arrays = {name: encode(x) for name, x in zip("qkv", tensors, strict=True)} | dict(dout=encode(dout))
    results = dict(out=dout, dq=tensors[0], dk=tensors[1], dv=tensors[2])
    arrays |= {name: encode(np.full(like.shape, np.float32(np.nan))) for name, like in results.items()}
    arrays["lse"] = np.full((batch, case.heads, query_time), np.nan, np.float32)
    arrays["dlse"] = dlse.astype(np.float32)
    fields = ("head_tiles", "rows", "row_count", "offset", "full", "columns", "mask", "masks")
    for side, tiles in (("q", plan.by_query), ("k", plan.by_key)):
        for name in fields:
            arrays[f"{side}.{name}"] = np.ascontiguousarray(getattr(tiles, name)).view(np.int32)
    arrays["head_index"], arrays["order"] = plan.head_index.astype(np.int32), plan.residues.astype(np.int32)
    return arrays


def values_of(case, plan):
    """Every number that a manifest's expressions name."""
    values = dict(batch=case.batch, heads=case.heads, query_time=case.time[0], key_time=case.time[1])
    values |= dict(scale=case.scale, scale_log2=case.scale * 1.4426950408889634)
    values |= dict(q_most_tiles=int(np.diff(plan.by_query.head_tiles).max()))
    return values | dict(k_most_tiles=int(np.diff(plan.by_key.head_tiles).max()))


def draw(case, seed=0):
    random = np.random.default_rng(seed)
    (query_time, key_time), (head_dim, value_dim) = case.time, case.dims

    def normal(*shape):
        return DECODE[case.dtype](ENCODE[case.dtype](random.standard_normal(shape)))

    q = normal(case.batch, query_time, case.heads * head_dim)
    k = normal(case.batch, key_time, case.heads * head_dim)
    v = normal(case.batch, key_time, case.heads * value_dim)
    dout = normal(case.batch, query_time, case.heads * value_dim)
    return (q, k, v), dout, random.standard_normal((case.batch, case.heads, query_time))


def errors(case, attention):
    """{result: relative error}; where the oracle is infinite the result has to be the same."""
    seen = grids(case)
    tensors, dout, dlse = draw(case)
    got = attention(case, seen, plan_of(case, seen), tensors, dout, dlse)
    wanted, _ = oracle(case, seen, *tensors, dout, dlse)
    report = {}
    for name, truth in wanted.items():
        value, finite = got[name].astype(np.float64), np.isfinite(truth)
        same = np.array_equal(value[~finite], truth[~finite])
        error = np.linalg.norm(value[finite] - truth[finite]) / max(np.linalg.norm(truth[finite]), 1e-30)
        report[name] = float(error) if same and np.isfinite(error) else "wrong infinities or NaN"
    return report


def spread(case, attention):
    """Rows that a poisoned number reached beyond its due, by result: a NaN key's due are the queries that see it."""
    seen = grids(case)
    tensors, dout, dlse = draw(case)
    _, mask = oracle(case, seen, *tensors, dout, dlse)
    (tensor, row), head_dim = *case.poison.items(), case.dims[0]
    tensors["qkv".index(tensor)][0, row, 0:head_dim] = np.nan
    got = attention(case, seen, plan_of(case, seen), tensors, dout, dlse)
    reached = {
        name: np.isnan(got[name]).reshape(case.batch, -1, case.heads, case.dims[0]).any(-1)
        for name in ("out", "dq", "dk", "dv")
    }
    seers = mask[0, :, row]
    due_queries = np.zeros((case.batch, case.time[0], case.heads), bool)
    due_queries[0, :, 0] = seers
    due_keys = np.zeros((case.batch, case.time[1], case.heads), bool)
    due_keys[0, :, 0] = mask[0][seers].any(0)
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


def uneven(head, query, key):
    return (query >= key) & ((head == 0) | (key < 16))


SMALL = ((16, 16), (16, 16))
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
POISONED = {
    "NaN key": Case(local(20), bs=8, poison={"k": 17}),
    "NaN key, split": Case(causal, split=True, tiles=SMALL, poison={"k": 20}),
    "NaN key, closed": Case(chunk(16), bs=8, order=4, dtype="f16", poison={"k": 20}),
    "NaN key, float16": Case(causal, dtype="f16", poison={"k": 20}),
}
