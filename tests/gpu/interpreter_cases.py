"""Runs the kernels in Triton's interpreter on small cases and prints one JSON line a case. Imports no TensorFlow.

    TRITON_INTERPRET=1 python interpreter_cases.py [NAME ...]

Each line has the relative error of every result against a float64 NumPy oracle, or what else a case checks.
"""

import json
import os
import sys
import types
from dataclasses import dataclass, field, replace
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"
ROOT = Path(__file__).resolve().parents[2]
sys.modules["blocksparse"] = types.ModuleType(
    "blocksparse"
)  # the package's own __init__ would import TensorFlow
sys.modules["blocksparse"].__path__ = [str(ROOT / "blocksparse")]

import numpy as np  # noqa: E402
import triton.language as tl  # noqa: E402
import triton.runtime.interpreter as interpreter  # noqa: E402

from blocksparse.gpu import kernels, manifest  # noqa: E402
from blocksparse.gpu.key import key_of  # noqa: E402
from blocksparse.plan import build_blocks, make_plan  # noqa: E402


class Storage:
    """As much of a tensor's storage as the interpreter asks for: it copies kernels' arguments to the host and back."""

    def __init__(self, array):
        self.array = array

    def data_ptr(self):
        return self.array.ctypes.data

    def cpu(self):
        return self

    def copy_(self, other):
        pass  # there is one memory only


class Tensor:
    """A NumPy array that the interpreter takes for a tensor. bfloat16 is uint16 with a name."""

    def __init__(self, array, dtype):
        self.array, self.dtype = array, dtype

    def data_ptr(self):
        return self.array.ctypes.data

    def untyped_storage(self):
        return Storage(self.array)

    def storage_offset(self):
        return 0

    def size(self):
        return self.array.shape

    def stride(self):
        return self.array.strides

    def new_empty(self, *_, **__):
        return Tensor(self.array, self.dtype)

    def set_(self, *_):
        return self


def to_bfloat16(array):
    bits = array.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bfloat16(array):
    return (array.astype(np.uint32) << 16).view(np.float32)


def dot(builder, a, b, d, *_):
    """The interpreter's own multiplies bfloat16's bit patterns."""
    a, b = (from_bfloat16(x.data) if x.dtype.scalar == tl.bfloat16 else x.data for x in (a, b))
    return interpreter.TensorHandle(np.matmul(a, b, dtype=d.data.dtype) + d.data, d.dtype.scalar)


class Guard:
    """In place of the interpreter's memory: loads and stores have to stay inside the buffers of the running pass."""

    def __init__(self, memory, buffers):
        self.memory, self.buffers = memory, buffers

    def check(self, addresses, mask, size):
        addresses = addresses[np.broadcast_to(mask, addresses.shape)].astype(np.int64)
        inside = np.zeros(addresses.shape, bool)
        for tensor in self.buffers.values():
            start = tensor.array.ctypes.data
            inside |= (addresses >= start) & (addresses + size <= start + tensor.array.nbytes)
        if not inside.all():
            raise IndexError(f"{(~inside).sum()} of {inside.size} addresses are outside every buffer")

    def load(self, addresses, mask, other, dtype):
        self.check(addresses, mask, np.dtype(dtype).itemsize)
        return self.memory.load(addresses, mask, other, dtype)

    def store(self, addresses, value, mask):
        self.check(addresses, mask, value.dtype.itemsize)
        return self.memory.store(addresses, value, mask)


MEMORY = interpreter._interpreter
interpreter.InterpreterBuilder.create_dot = dot

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
    then: tuple = ()  # passes after this one over other keys, in one softmax with it: fields in place of this one's

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


def plan_of(case, seen):
    bs = case.bs
    blocks = seen.reshape(case.heads, case.time[0] // bs, bs, case.time[1] // bs, bs)

    def callback(blk_shape, head, query, key, _):
        return blocks[head, query, :, key]

    built = build_blocks(blocks.any((2, 4)), bs, callback)
    return make_plan(built, case.order, case.heads, *case.tiles)


def visible(case):
    """Who sees whom in any pass, bool [heads, query_time, key_time] in tensor rows."""
    (query_time, key_time), union = case.time, np.zeros((case.heads, *case.time), int)
    for one in case.passes:
        for head, order in enumerate(np.broadcast_to(one.order, case.heads)):
            rows = tensor_row(np.arange(query_time), query_time, order)
            columns = tensor_row(np.arange(key_time), key_time, order)
            union[head][np.ix_(rows, columns)] += grids(one)[head]
    assert union.max() <= 1, "two passes show a query the same key"
    return union == 1


def tensor_row(rows, time, order):
    run = time // order
    return rows % run * order + rows // run


def oracle(case, mask, q, k, v, dout, dlse):
    """Values and gradients in float64, in tensor rows."""
    batch, heads = case.batch, case.heads

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
    return results


def run(key, buffers, values, split):
    """What the op does: temps, then every launch with its arguments evaluated."""
    interpreter._interpreter = Guard(MEMORY, buffers)
    for name, size in manifest.temps(key):
        buffers[name] = Tensor(np.full(eval(size, {}, values), 0xFF, np.uint8), "float32")
    for launch in manifest.launches(str(key)):
        arguments = []
        for word in launch.args:
            kind, what = word.split(":")
            arguments.append(
                buffers[what] if kind == "p" else values[what] if kind == "f" else int(eval_(what, values))
            )
        grid = tuple(eval_(size, values) for size in launch.grid)
        constexprs = launch.constexprs if split is None else launch.constexprs | dict(SPLIT=split)
        names = [name for name, kind in launch.signature.items() if kind != "constexpr"]
        kernel = getattr(kernels, launch.function)
        kernel[grid](
            **kernels.grouped(kernel.arg_names, dict(zip(names, arguments, strict=True)), constexprs)
        )


def eval_(expression, values):
    """An integer expression over names such as q.most_tiles."""
    return eval(expression.replace("q.", "q_").replace("k.", "k_"), {}, values)


def attention(case, tensors, dout, dlse):
    """Forward and backward through the manifests; results as float arrays."""
    encode, decode, name = ENCODE[case.dtype], DECODE[case.dtype], NAMES[case.dtype]
    batch, (query_time, key_time), heads = case.batch, case.time, case.heads
    buffers = {n: Tensor(encode(x), name) for n, x in zip("qkv", tensors, strict=True)}
    poisoned = np.float32(np.nan)
    for n, like in (
        ("out", dout),
        ("dout", dout),
        ("dq", tensors[0]),
        ("dk", tensors[1]),
        ("dv", tensors[2]),
    ):
        buffers[n] = Tensor(encode(np.full(like.shape, poisoned)), name)
    buffers["dout"] = Tensor(encode(dout), name)
    buffers["lse"] = Tensor(np.full((batch, heads, query_time), np.nan, np.float32), "float32")
    buffers["dlse"] = Tensor(dlse.astype(np.float32), "float32")
    values = dict(batch=batch, heads=heads, query_time=query_time, key_time=key_time, scale=case.scale)
    values |= dict(scale_log2=case.scale * 1.4426950408889634)
    plans = [plan_of(one, grids(one)) for one in case.passes]
    for op in ("forward", "backward"):
        for number, plan in enumerate(plans):
            key = key_of(plan, op, case.dtype, *case.dims, case.batch, joined=number > 0)
            run_pass(replace(key, wide=case.wide), plan, buffers, values, case.split)
    results = {n: decode(buffers[n].array) for n in ("out", "dq", "dk", "dv")}
    return results | dict(lse=buffers["lse"].array)


def run_pass(key, plan, buffers, values, split):
    """run, with what is to be known of the plan."""
    fields = ("head_tiles", "rows", "row_count", "offset", "full", "columns", "mask", "masks")
    sides = dict(q=plan.by_query, k=plan.by_key)
    for side, tiles in sides.items():
        for n in fields:
            array = np.ascontiguousarray(getattr(tiles, n)).view(np.int32)
            buffers[f"{side}.{n}"] = Tensor(array, "int32")
    buffers["head_index"] = Tensor(plan.head_index.astype(np.int32), "int32")
    buffers["order"] = Tensor(plan.residues.astype(np.int32), "int32")
    most = {f"{side}_most_tiles": int(np.diff(tiles.head_tiles).max()) for side, tiles in sides.items()}
    run(key, buffers, values | most, split)


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


def errors(case):
    """{result: relative error}; where the oracle is infinite the result has to be the same."""
    tensors, dout, dlse = draw(case)
    got = attention(case, tensors, dout, dlse)
    wanted = oracle(case, visible(case), *tensors, dout, dlse)
    report = {}
    for name, truth in wanted.items():
        value, finite = got[name].astype(np.float64), np.isfinite(truth)
        same = np.array_equal(value[~finite], truth[~finite])
        error = np.linalg.norm(value[finite] - truth[finite]) / max(np.linalg.norm(truth[finite]), 1e-30)
        report[name] = float(error) if same and np.isfinite(error) else "wrong infinities or NaN"
    return report


def spread(case):
    """Rows that a poisoned number reached beyond its due, by result: a NaN key's due are the queries that see it."""
    tensors, dout, dlse = draw(case)
    mask = visible(case)
    (tensor, row), head_dim = *case.poison.items(), case.dims[0]
    tensors["qkv".index(tensor)][0, row, 0:head_dim] = np.nan
    got = attention(case, tensors, dout, dlse)
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
POISONED = {
    "NaN key, joined": Case(local(20), bs=8, poison={"k": 17}, then=(dict(STRIDED, bs=8),)),
    "NaN key, joined, closed": Case(
        local(20), bs=8, dtype="f16", poison={"k": 17}, then=(dict(STRIDED, bs=8),)
    ),
    "NaN key": Case(local(20), bs=8, poison={"k": 17}),
    "NaN key, split": Case(causal, split=True, tiles=SMALL, poison={"k": 20}),
    "NaN key, closed": Case(chunk(16), bs=8, order=4, dtype="f16", poison={"k": 20}),
    "NaN key, float16": Case(causal, dtype="f16", poison={"k": 20}),
}


def main(names):
    for name, case in CASES.items():
        if not names or name in names:
            print(
                json.dumps(dict(case=name, tolerance=TOLERANCE[case.dtype], errors=errors(case))), flush=True
            )
    for name, case in POISONED.items():
        if not names or name in names:
            print(json.dumps(dict(case=name, tolerance=0, errors=spread(case))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
