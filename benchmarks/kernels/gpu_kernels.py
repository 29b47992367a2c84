"""Times the kernels alone, on PyTorch's memory: what gpu_tuning.py asks.

    python benchmarks/kernels/gpu_kernels.py VARIANTS.json OUT.json      (on the GPU machine, without TensorFlow)

VARIANTS.json is a list of {case, kernel, by_query, by_key}, with {warps, stages, maxnreg, split, heaviest_first,
roles, dtype} where they differ from the table. Each is compiled (all cores), checked against float64 on two
(batch, head) pairs, and timed with events, the cache flushed before every run. Plans come from the engine's
planner, launches from the manifest.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields, replace
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.common import without_tensorflow  # noqa: F401  first

from benchmarks.common import cases, timing, truth  # isort: skip
from blocksparse.gpu import manifest  # isort: skip
from blocksparse.gpu.key import Key, key_of  # isort: skip
from blocksparse.gpu.tuning import Launch  # isort: skip
from benchmarks.kernels.driver import Driver  # isort: skip
from benchmarks.kernels.problem import RESULTS, Problem, number, upload  # isort: skip

REPEATS = 15
KERNELS = {
    "forward": ("forward", 0),
    "dq": ("backward", 0),
    "dkv": ("backward", 1),
    "closed": ("forward", 0),  # this and the next where the plan is closed
    "whole": ("backward", 0),
}


def launch_of(variant: dict, key: Key) -> manifest.Launch:
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


def milliseconds(torch, step, flush, repeats=REPEATS):
    return timing.median(timing.events(torch, step, repeats, flush, warm_up=2))


def read(file):
    """The variants, each pass after the one whose results it takes."""
    order = list(KERNELS)
    variants = json.loads(file.read_text())
    return sorted(variants, key=lambda v: (v["case"], v.get("dtype", "f16"), order.index(v["kernel"])))


def plans_of(variants):
    """{(case name, sides): plan}, and the key of each variant's plan in it."""
    named = {case.name: case for case in (*cases.GPU, *cases.SHORT)}
    plans, blocks, keys = {}, {}, []
    for variant in variants:
        name, sides = variant["case"], (tuple(variant["by_query"]), tuple(variant["by_key"]))
        if name not in blocks:
            blocks[name] = cases.blocks(named[name])
        if (name, sides) not in plans:
            plans[name, sides] = cases.plan(named[name], *sides, blocks[name])
        keys.append((name, sides))
    return plans, keys


class Bench:
    """The card, and what is on it of the case that is being timed."""

    def __init__(self, torch):
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.cuda.init()
        self.torch, self.driver = torch, Driver()
        self.stream = torch.cuda.current_stream().cuda_stream
        self.scratch = torch.empty(256 << 20, dtype=torch.int8, device="cuda")
        self.problem, self.uploaded = None, {}

    def flush(self):
        for _ in range(3):
            self.scratch.zero_()

    def turn_to(self, case, dtype):
        if self.problem is None or (self.problem.case, self.problem.dtype) != (case, dtype):
            self.problem, self.uploaded = None, {}  # frees the last one's memory first
            self.problem = Problem(self.torch, case, dtype)

    def values(self, header):
        """What the manifest's expressions are made of."""
        case, scale = self.problem.case, self.problem.scale
        properties = self.torch.cuda.get_device_properties(0)
        return header | dict(
            batch=case.batch,
            heads=case.heads,
            query_time=case.time,
            key_time=case.time,
            scale=scale,
            scale_log2=scale * math.log2(math.e),
            multiprocessors=properties.multi_processor_count,
        )

    def measure(self, kernel, launch, binary, key, plan):
        """What a row gets; raises RuntimeError where the driver refuses. binary: as compile_one made it."""
        cubin, symbol, warps, shared = binary
        if key not in self.uploaded:
            self.uploaded[key] = upload(self.torch, plan)
        pointers, _, header = self.uploaded[key]
        values = self.values(header)
        function, registers, local = self.driver.load(cubin, symbol, shared)
        grid = [number(size, values) for size in launch.grid]
        arguments = list(self.problem.arguments(launch, pointers, values))
        step = self.driver.launcher(function, grid, warps, shared, arguments, self.stream)
        for name in RESULTS[kernel]:
            self.problem.data[name].fill_(math.nan)
        step()
        self.torch.cuda.synchronize()
        error = self.problem.error(kernel)
        ms = round(milliseconds(self.torch, step, self.flush), 4)
        return dict(ms=ms, relative_error=error, registers=registers, local=local, shared=shared)


def launching(variant, launch):
    """How a variant was launched, the table's choices included."""
    options, constants = launch.options, launch.constexprs
    return dict(
        warps=options["num_warps"],
        stages=options["num_stages"],
        maxnreg=options["maxnreg"] or 0,
        split=constants.get("SPLIT", False),
        heaviest_first=constants["HEAVIEST_FIRST"],
        roles=constants.get("COLUMNS"),
        programs=variant.get("programs"),
    )


def line(row, how):
    """A row as it is printed."""
    dtype = row.get("dtype", "f16")
    tile = row["by_key" if row["kernel"] == "dkv" else "by_query"]
    words = " ".join(f"{name} {value}" for name, value in how.items())
    used = f"registers {row['registers']} local {row['local']} shared {row['shared'] >> 10}K"
    wrong = (
        "" if row["relative_error"] < truth.TOLERANCE["float16"] else f"  WRONG {row['relative_error']:.2g}"
    )
    return f"{row['case']:19} {dtype} {row['kernel']:7} {tile} {words} {used} {row['ms']:.4f} ms{wrong}"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("variants", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    clock = time.time()
    named, variants = {case.name: case for case in (*cases.GPU, *cases.SHORT)}, read(args.variants)
    plans, keys = plans_of(variants)
    print(f"{len(plans)} plans {time.time() - clock:.1f} s", flush=True)
    launches = []
    for variant, plan in zip(variants, keys, strict=True):
        dim, dtype = named[variant["case"]].dim, variant.get("dtype", "f16")
        launches.append(launch_of(variant, key_of(plans[plan], "backward", dtype, dim, dim)))
    pool = ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn"))
    distinct = {str(launch): launch for launch in launches}
    compiled = {text: pool.submit(compile_one, launch, 90) for text, launch in distinct.items()}

    import torch

    bench, rows = Bench(torch), []
    print(f"copy: {ceiling_copy(torch):.2f} TB/s, product: {ceiling_product(torch):.0f} TFLOP/s", flush=True)
    for variant, key, launch in zip(variants, keys, launches, strict=True):
        rows.append(dict(variant))
        bench.turn_to(named[variant["case"]], variant.get("dtype", "f16"))
        binary = compiled[str(launch)].result()
        try:
            if isinstance(binary, str):
                raise RuntimeError(f"does not compile: {binary}")
            how = launching(variant, launch)
            rows[-1] |= bench.measure(variant["kernel"], launch, binary, key, plans[key]) | how
            print(line(rows[-1], how), flush=True)
        except RuntimeError as error:
            rows[-1]["error"] = str(error)
            print(variant["case"], variant["kernel"], error, flush=True)
        args.out.write_text(json.dumps(rows, indent=0))
    print(f"{time.time() - clock:.0f} s in all")


def ceiling_copy(torch):
    source = torch.randn(1 << 29, device="cuda")
    target = torch.empty_like(source)
    return 8 * source.numel() / milliseconds(torch, lambda: target.copy_(source), lambda: None, 5) / 1e9


def ceiling_product(torch):
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.float16) for _ in range(2))
    return 2 * 8192**3 / milliseconds(torch, lambda: a @ b, lambda: None, 5) / 1e9


if __name__ == "__main__":
    main()
