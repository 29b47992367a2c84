"""Times the kernels alone, on PyTorch's memory: the tuning tool behind attention_gpu.py --tune.

    python benchmarks/gpu_kernels.py VARIANTS.json OUT.json      (on the GPU machine, without TensorFlow)

VARIANTS.json is a list of {case, kernel, by_query, by_key}, with {warps, stages, maxnreg, split, heaviest_first,
roles, dtype} where they differ from the table. Each is compiled (all cores), checked against a float32 reference on
two (batch, head) pairs, and timed with events, the cache flushed before every run. Plans come from the engine's
planner, launches from the manifest.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields, replace
from multiprocessing import get_context
from pathlib import Path

import without_tensorflow  # noqa: F401  first

import gpu_cases  # isort: skip
import numpy as np

from blocksparse.gpu import manifest
from blocksparse.gpu.tuning import Launch

KERNELS = {
    "forward": ("forward", 0),
    "dq": ("backward", 0),
    "dkv": ("backward", 1),
    "closed": ("forward", 0),  # this and the next where the plan is closed
    "whole": ("backward", 0),
}
RESULTS = {
    "forward": ("out", "lse"),
    "closed": ("out", "lse"),
    "dq": ("dq", "delta"),
    "dkv": ("dk", "dv"),
    "whole": ("dq", "dk", "dv"),
}


def launch_of(variant: dict, key: manifest.Key) -> manifest.Launch:
    """The table's launch with what the variant says instead; maxnreg 0: no limit."""
    op, index = KERNELS[variant["kernel"]]
    by_key = key.by_key if op == "backward" else None
    closed = key.closed if variant["kernel"] in ("closed", "whole") else 0
    how = {field.name: variant[field.name] for field in fields(Launch) if field.name in variant}
    if "maxnreg" in variant:
        how["registers"] = variant["maxnreg"] or None
    return manifest.launches(replace(key, op=op, by_key=by_key, closed=closed), **how)[index]


def compile_one(launch: manifest.Launch, capability: int):
    """(cubin, symbol, warps, shared bytes), or why not, in a process that holds Triton."""
    from blocksparse.gpu import kernels

    try:
        compiled = kernels.compiled(launch, capability)
    except Exception as error:  # a variant that does not compile is a row of the report too
        return str(error)[-300:]
    return compiled.asm["cubin"], compiled.metadata.name, kernels.warps(compiled), compiled.metadata.shared


class Driver:
    """The five driver calls a launch needs."""

    def __init__(self):
        self.cuda = ctypes.CDLL("libcuda.so.1")

    def call(self, name, *args):
        status = getattr(self.cuda, name)(*args)
        if status:
            raise RuntimeError(f"{name} failed with {status}")

    def load(self, cubin, symbol, shared):
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self.call("cuModuleLoadData", ctypes.byref(module), cubin)
        self.call("cuModuleGetFunction", ctypes.byref(function), module, symbol.encode())
        if shared > 48 << 10:
            self.call("cuFuncSetAttribute", function, 8, shared)
        registers, local = ctypes.c_int(), ctypes.c_int()
        self.call("cuFuncGetAttribute", ctypes.byref(registers), 4, function)
        self.call("cuFuncGetAttribute", ctypes.byref(local), 3, function)
        return function, registers.value, local.value

    def launcher(self, function, grid, warps, shared, arguments, stream):
        boxed = [*arguments, ctypes.c_void_p(0), ctypes.c_void_p(0)]
        pointers = (ctypes.c_void_p * len(boxed))(*[ctypes.addressof(box) for box in boxed])

        def launch():
            self.call(
                "cuLaunchKernel",
                function,
                *grid,
                32 * warps,
                1,
                1,
                shared,
                ctypes.c_void_p(stream),
                pointers,
                None,
            )

        launch.keep = boxed
        return launch


def bench(torch, step, flush, repeats):
    """Median milliseconds of `step` on the device; the flush before it also hides the time to launch it."""
    times = []
    for _ in range(repeats + 2):
        flush()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step()
        end.record()
        times.append((start, end))
    torch.cuda.synchronize()
    return sorted(start.elapsed_time(end) for start, end in times[2:])[repeats // 2]


class Problem:
    """Tensors, plans and reference of one (case, dtype)."""

    def __init__(self, torch, case, dtype):
        self.torch, self.case, self.dtype = torch, case, dtype
        torch.manual_seed(0)
        kind = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32, "tf32": torch.float32}[
            dtype
        ]
        shape = (case.batch, case.time, case.heads * case.dim)
        self.data = {name: torch.randn(shape, device="cuda").to(kind) for name in ("q", "k", "v", "dout")}
        self.data |= {
            name: torch.empty(shape, device="cuda", dtype=kind) for name in ("out", "dq", "dk", "dv")
        }
        rows = (case.batch, case.heads, case.time)
        self.data |= {name: torch.empty(rows, device="cuda") for name in ("lse", "delta")}
        self.data["dlse"] = torch.randn(rows, device="cuda") * 0.1
        self.scale = case.dim**-0.5
        self.pairs = [(0, 0), (case.batch - 1, min(case.heads - 1, 3))]
        self.truth = self.reference()

    def reference(self):
        """Every result on a few (batch, head) pairs, in blocks of queries, float32."""
        torch, case, d = self.torch, self.case, self.case.dim
        truth = {}
        for b, h in self.pairs:
            q, k, v, g = (
                self.data[name][b, :, h * d : (h + 1) * d].float() for name in ("q", "k", "v", "dout")
            )
            dlse, key = self.data["dlse"][b, h], torch.arange(case.time, device="cuda")[None]
            parts = {name: [] for name in ("out", "lse", "delta", "dq")}
            dk, dv = torch.zeros_like(k), torch.zeros_like(v)
            for start in range(0, case.time, 2048):
                rows = slice(start, min(start + 2048, case.time))
                query = torch.arange(case.time, device="cuda")[rows, None]
                s = (self.scale * q[rows] @ k.T).masked_fill(~gpu_cases.sees(case, h, query, key), -math.inf)
                lse = s.logsumexp(1)
                p = (s - lse[:, None]).exp()
                out = p @ v
                delta = (out * g[rows]).sum(1) - dlse[rows]
                ds = p * (g[rows] @ v.T - delta[:, None])
                dk += self.scale * ds.T @ q[rows]
                dv += p.T @ g[rows]
                for name, part in dict(out=out, lse=lse, delta=delta, dq=self.scale * ds @ k).items():
                    parts[name].append(part)
            truth[b, h] = {name: torch.cat(part) for name, part in parts.items()} | dict(dk=dk, dv=dv)
        return truth

    def error(self, kernel):
        """The largest relative error of a kernel's results."""
        worst, d = 0.0, self.case.dim
        for (b, h), truth in self.truth.items():
            for name in RESULTS[kernel]:
                tensor = self.data[name]
                got = (
                    tensor[b, h]
                    if tensor.dim() == 3 and name in ("lse", "delta")
                    else tensor[b, :, h * d : (h + 1) * d]
                )
                error = ((got.float() - truth[name]).norm() / truth[name].norm()).item()
                worst = max(worst, error if math.isfinite(error) else math.inf)
        return worst

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


PLAN_FIELDS = ("head_tiles", "rows", "row_count", "offset", "full", "columns", "mask", "masks")


def upload(torch, plan):
    """({name: pointer}, tensors to keep alive, header values)"""
    keep = {"head_index": plan.head_index, "order": plan.residues}
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


def key_of(case, plan, dtype):
    sides = [(side.row_tile, side.column_tile, side.granule) for side in (plan.by_query, plan.by_key)]
    return manifest.Key(
        "backward",
        dtype,
        case.dim,
        case.dim,
        *sides,
        permuted=case.order != 1,
        wide=False,
        shared=len(plan.by_query.head_tiles) == 2,
        long_rows=len(plan.by_query.columns) >= manifest.LONG * len(plan.by_query.rows),
        closed=plan.closed,
        capability=90,
    )


def main(variants_file, out_file, repeats=15):
    clock = time.time()
    order = list(KERNELS)  # each pass takes what the one before it left
    variants = json.loads(Path(variants_file).read_text())
    variants.sort(key=lambda v: (v["case"], v.get("dtype", "f16"), order.index(v["kernel"])))
    cases = {case.name: case for case in gpu_cases.CASES}
    plans, blocks = {}, {}
    for variant in variants:
        name, sides = variant["case"], (tuple(variant["by_query"]), tuple(variant["by_key"]))
        if name not in blocks:
            blocks[name] = gpu_cases.blocks(cases[name])
        if (name, sides) not in plans:
            plans[name, sides] = gpu_cases.plan(cases[name], *sides, blocks[name])
        variant["plan"] = (name, sides)
    print(f"{len(plans)} plans {time.time() - clock:.1f} s", flush=True)
    pool = ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn"))
    launches = [
        launch_of(v, key_of(cases[v["case"]], plans[v["plan"]], v.get("dtype", "f16"))) for v in variants
    ]
    distinct = {str(launch): launch for launch in launches}
    compiled = {text: pool.submit(compile_one, launch, 90) for text, launch in distinct.items()}

    import torch

    torch.devices.cuda.matmul.allow_tf32 = False
    torch.cuda.init()
    scratch = torch.empty(256 << 20, dtype=torch.int8, device="cuda")
    driver, stream, rows, problem, uploaded = Driver(), torch.cuda.current_stream().cuda_stream, [], None, {}

    def flush():
        for _ in range(3):
            scratch.zero_()

    print(f"copy: {ceiling_copy(torch):.2f} TB/s, product: {ceiling_product(torch):.0f} TFLOP/s", flush=True)
    for variant, launch in zip(variants, launches, strict=True):
        case, dtype = cases[variant["case"]], variant.get("dtype", "f16")
        if problem is None or (problem.case, problem.dtype) != (case, dtype):
            problem, uploaded = None, {}
            problem = Problem(torch, case, dtype)
        result = compiled[str(launch)].result()
        row = {name: value for name, value in variant.items() if name != "plan"}
        rows.append(row)
        if isinstance(result, str):
            row["error"] = result
            print(case.name, variant["kernel"], "does not compile:", result[-120:], flush=True)
            continue
        cubin, symbol, warps, shared = result
        try:
            if variant["plan"] not in uploaded:
                uploaded[variant["plan"]] = upload(torch, plans[variant["plan"]])
            pointers, _, header = uploaded[variant["plan"]]
            values = header | dict(
                batch=case.batch, heads=case.heads, query_time=case.time, key_time=case.time
            )
            values |= dict(scale=problem.scale, scale_log2=problem.scale * math.log2(math.e))
            values["multiprocessors"] = torch.cuda.get_device_properties(0).multi_processor_count
            function, registers, local = driver.load(cubin, symbol, shared)
            grid = [number(size, values) for size in launch.grid]
            arguments = list(problem.arguments(launch, pointers, values))
            step = driver.launcher(function, grid, warps, shared, arguments, stream)
            for name in RESULTS[variant["kernel"]]:
                problem.data[name].fill_(math.nan)
            step()
            torch.cuda.synchronize()
            error = problem.error(variant["kernel"])
            ms = bench(torch, step, flush, repeats)
        except RuntimeError as problem_text:
            row["error"] = str(problem_text)
            print(case.name, variant["kernel"], "does not run:", problem_text, flush=True)
            continue
        row |= dict(ms=round(ms, 4), relative_error=error, registers=registers, local=local, shared=shared)
        options, constants = launch.options, launch.constexprs
        row |= dict(warps=options["num_warps"], stages=options["num_stages"], maxnreg=options["maxnreg"] or 0)
        row |= dict(split=constants.get("SPLIT", False), heaviest_first=constants["HEAVIEST_FIRST"])
        row |= dict(roles=constants.get("COLUMNS"), programs=variant.get("programs"))
        how = " ".join(
            f"{name} {row[name]}"
            for name in ("warps", "stages", "maxnreg", "split", "heaviest_first", "roles", "programs")
        )
        used = f"registers {registers} local {local} shared {shared >> 10}K"
        wrong = "" if error < 2e-2 else f"  WRONG {error:.2g}"
        tile = variant["by_key" if variant["kernel"] == "dkv" else "by_query"]
        print(
            f"{case.name:19} {dtype} {variant['kernel']:7} {tile} {how} {used} {ms:.4f} ms{wrong}", flush=True
        )
        Path(out_file).write_text(json.dumps(rows, indent=0))
    print(f"{time.time() - clock:.0f} s in all")


def ceiling_copy(torch):
    source = torch.randn(1 << 29, device="cuda")
    target = torch.empty_like(source)
    return 8 * source.numel() / bench(torch, lambda: target.copy_(source), lambda: None, 5) / 1e9


def ceiling_product(torch):
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.float16) for _ in range(2))
    return 2 * 8192**3 / bench(torch, lambda: a @ b, lambda: None, 5) / 1e9


if __name__ == "__main__":
    main(*sys.argv[1:])
