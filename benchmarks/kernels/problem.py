"""One (case, dtype) on the card: tensors, the truth of them, and a plan's arrays as kernels' arguments."""

from __future__ import annotations

import ctypes

import numpy as np

from benchmarks.common import truth

DTYPES = {"f16": "float16", "bf16": "bfloat16", "f32": "float32", "tf32": "float32"}
RESULTS = {
    "forward": ("out", "lse"),
    "closed": ("out", "lse"),
    "dq": ("dq", "delta"),
    "dkv": ("dk", "dv"),
    "whole": ("dq", "dk", "dv"),
}
PLAN_FIELDS = ("head_tiles", "rows", "row_count", "offset", "full", "columns", "mask", "masks")


class Problem:
    """Tensors, plans and reference of one (case, dtype)."""

    def __init__(self, torch, case, dtype):
        self.torch, self.case, self.dtype = torch, case, dtype
        torch.manual_seed(0)
        kind = getattr(torch, DTYPES[dtype])
        shape = (case.batch, case.time, case.heads * case.dim)
        self.data = {name: torch.randn(shape, device="cuda").to(kind) for name in ("q", "k", "v", "dout")}
        self.data |= {
            name: torch.empty(shape, device="cuda", dtype=kind) for name in ("out", "dq", "dk", "dv")
        }
        rows = (case.batch, case.heads, case.time)
        self.data |= {name: torch.empty(rows, device="cuda") for name in ("lse", "delta")}
        self.data["dlse"] = torch.randn(rows, device="cuda") * 0.1
        self.scale = case.dim**-0.5
        self.truth = {
            pair: self.truth_of(*pair) for pair in ((0, 0), (case.batch - 1, min(case.heads - 1, 3)))
        }

    def head_of(self, tensor, batch, head):
        """One (batch, head) pair of a tensor, [time, head_dim] or [time], in float64."""
        by_heads = tensor.shape[1:] == (self.case.heads, self.case.time)
        columns = slice(head * self.case.dim, (head + 1) * self.case.dim)
        return (tensor[batch, head] if by_heads else tensor[batch, :, columns]).double()

    def truth_of(self, batch, head):
        """Every result of one pair."""
        position = self.torch.arange(self.case.time, device="cuda")
        inputs = (self.head_of(self.data[name], batch, head) for name in ("q", "k", "v", "dout", "dlse"))
        return truth.attention(self.torch, self.case.sees(head), position, *inputs)

    def error(self, kernel):
        """The largest relative error of a kernel's results."""
        errors = []
        for pair, want in self.truth.items():
            got = {name: self.head_of(self.data[name], *pair) for name in RESULTS[kernel]}
            errors.append(truth.relative_error(self.torch, got, want))
        return max(errors)

    def arguments(self, launch, plan, values):
        pointers = {name: tensor.data_ptr() for name, tensor in self.data.items()} | plan
        for word in launch.args:
            kind, what = word.split(":")
            if kind == "p":
                yield ctypes.c_void_p(pointers[what])
            elif kind == "f":
                yield ctypes.c_float(values[what])
            else:
                yield ctypes.c_int(number(what, values))


def number(expression, values):
    return eval(expression.replace("q.", "q_").replace("k.", "k_"), {}, values)


def upload(torch, plan):
    """({name: pointer}, tensors to keep alive, header values)"""
    keep = {"head_index": plan.head_index, "residues": plan.residues}
    for side, tiles in (("q", plan.by_query), ("k", plan.by_key)):
        keep |= {f"{side}.{name}": getattr(tiles, name) for name in PLAN_FIELDS}
    keep = {
        name: torch.from_numpy(np.ascontiguousarray(a).view(np.int32).reshape(-1).copy()).cuda()
        for name, a in keep.items()
    }
    values = dict(
        q_most_tiles=int(np.diff(plan.by_query.head_tiles).max()),
        k_most_tiles=int(np.diff(plan.by_key.head_tiles).max()),
    )
    return {name: t.data_ptr() if t.numel() else 0 for name, t in keep.items()}, keep, values
