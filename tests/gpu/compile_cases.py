"""Compiles the committed list of kernels for real architectures, without a GPU, and prints one JSON line a kernel.

    python compile_cases.py [--more]     --more: another list
    python compile_cases.py --all        the whole product of dtypes, head dims, blocks, work, architectures
    python compile_cases.py --stages     one that is refused
    python compile_cases.py --cuda       those in CUDA C++ for compute capability 7.0 and 7.5: NVRTC, no Triton

A line has the kernel's key, function, registers, bytes of local memory a thread (what spilled) and of shared memory; in
CUDA C++ also its threads, tensor core instructions and their share of the inner loop's.
"""

import itertools
import json
import math
import multiprocessing
import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "blocksparse"))  # as compile.py has it

import cubin
from gpu import cuda, manifest, tuning
from gpu.cuda import nvrtc
from gpu.key import Key, parse

NAMES = {"f16": "float16", "bf16": "bfloat16", "f32": "float32", "tf32": "float32"}
ARCHITECTURES = (80, 89, 90, 100, 120)
HOPPER = (128, 64), (128, 64)  # the tiles of warp roles, which other GPUs' plain kernels take too
SMALL = (64, 128), (64, 128)  # those of rows that see other columns than their neighbours
DENSE = (192, 128), (128, 64)  # row tiles that are several programs' of a plain kernel
WORK = {"short": 24.0, "class": 48.0, "window": 128.0, "long": 4096.0}


def keys(dtype, dims, block, work, capability, choice=None, **flags):
    """The forward and backward keys that an attention of this kind compiles, in the tiles of its GPU or in `choice`."""
    permuted = flags.get("permuted", False)
    choice = choice or tuning.choose(NAMES[dtype], *dims, block, WORK[work], capability, permuted)
    sides = [(m, n, math.gcd(block, m, n)) for m, n in choice]
    flags = dict(permuted=False, wide=False, shared=True, long_rows=work == "long", closed=0) | flags
    yield str(Key("forward", dtype, *dims, sides[0], None, **flags, capability=capability))
    yield str(Key("backward", dtype, *dims, *sides, **flags, capability=capability))


def committed():
    """About 70 kernels: every kind of tile, every dtype, flag and architecture at least once."""
    for dim, work in ((64, "long"), (64, "window"), (64, "short"), (128, "long"), (32, "window")):
        yield from keys("f16", (dim, dim), 32, work, 90)
    yield from keys("f16", (32, 32), 32, "short", 90, permuted=True, closed=1)
    yield from keys("f16", (128, 128), 8, "short", 90, permuted=True, closed=2)
    yield from keys("f16", (256, 256), 32, "long", 90)
    yield from keys("bf16", (64, 128), 64, "long", 90, shared=False)
    yield from keys("f32", (64, 64), 32, "window", 90)
    yield from keys("f16", (64, 64), 32, "long", 90, joined=True)
    yield from keys("f16", (64, 64), 32, "long", 90, segments=True)
    yield from keys("f16", (64, 64), 32, "long", 90, group=4, bounded=True)
    yield from keys("bf16", (128, 128), 64, "window", 80, permuted=True)
    yield from keys("f16", (64, 64), 32, "long", 89)
    yield from keys("f32", (64, 64), 32, "long", 120)
    yield from keys("f16", (64, 64), 32, "long", 100, HOPPER)  # as Triton before 3.9 compiles it for sm_90
    yield from keys("f16", (64, 64), 64, "long", 90, DENSE)
    yield from keys("f16", (64, 40), 8, "long", 80, DENSE, permuted=True, shared=False)
    yield from keys("f16", (64, 64), 64, "long", 90, SMALL)
    yield from keys(
        "bf16", (64, 40), 32, "long", 90, SMALL, joined=True, group=2, segments=True, bounded=True
    )


def more():
    """About as many: nearly every tile of the tables, and flags together."""
    for dim, work in ((64, "class"), (128, "short"), (128, "class"), (128, "window")):
        yield from keys("f16", (dim, dim), 32, work, 90)
    yield from keys("f16", (64, 64), 32, "class", 90, permuted=True)
    yield from keys("f16", (8, 8), 8, "window", 90)
    yield from keys("bf16", (96, 96), 16, "window", 90, permuted=True)
    yield from keys("tf32", (64, 64), 32, "window", 90, wide=True)
    yield from keys("tf32", (64, 64), 32, "window", 90, ((64, 64), (64, 64)))
    for dim in (32, 64, 128):
        yield from keys("f16", (dim, dim), 32, "window", 90, joined=True)
    yield from keys("f16", (64, 64), 32, "short", 90, permuted=True, closed=1, joined=True)
    yield from keys("f16", (128, 128), 32, "short", 90, permuted=True, closed=2, joined=True)
    yield from keys("f32", (64, 64), 32, "short", 80, permuted=True, closed=1, segments=True, orders=True)
    yield from keys("f16", (32, 32), 8, "short", 80, permuted=True, closed=1, group=2)
    yield from keys("f16", (64, 64), 32, "long", 120)
    for capability in (80, 89):
        yield from keys("f16", (64, 64), 64, "long", capability, DENSE)
    yield from keys(
        "bf16", (32, 32), 32, "long", 90, DENSE, joined=True, group=2, segments=True, bounded=True
    )
    yield from keys("f16", (64, 64), 32, "long", 80, DENSE, segments=True)
    for dim, work in ((32, "short"), (128, "long")):
        yield from keys("f16", (dim, dim), 64, work, 90, SMALL)
    yield from keys("f16", (128, 128), 16, "short", 90, SMALL, permuted=True, shared=False)


def three_warpgroups():
    """(key, launch, how) of kernels with warp roles on row tiles of 192, as the tuner would ask for them."""
    how = dict(warps=4, stages=4, registers=128, split=False, heaviest_first=False)
    usual = dict(permuted=False, wide=False, shared=True, long_rows=True, closed=0, capability=90)
    rare = usual | dict(
        permuted=True, shared=False, joined=True, group=2, segments=True, orders=True, bounded=True
    )
    for dtype, dims, granule, flags in (("f16", (64, 64), 64, usual), ("bf16", (32, 24), 8, rare)):
        sides = (192, 128, granule), (192, 64, granule)
        forward = Key("forward", dtype, *dims, sides[0], None, **flags)
        backward = Key("backward", dtype, *dims, *sides, **flags)
        for key, function, columns in (
            (forward, "attention_forward", 128),
            (backward, "attention_query_gradient", 64),
            (backward, "attention_key_gradient", 32 if dims == (64, 64) else 64),
        ):
            yield str(key), key.functions.index(function), how | dict(roles=columns)


def too_few_stages():
    """One whose ring would never have room for the tile that it waits for."""
    how = dict(warps=4, stages=2, registers=128, split=False, heaviest_first=False, roles=32)
    return next(keys("f16", (64, 64), 64, "long", 90, SMALL)), 0, how


def committed_cuda():
    """About 85 kernels: every tile of both tables, every cut of a warp, every flag."""
    for capability in (70, 75):
        for dim, work in (
            (64, "window"),
            (64, "long"),
            (96, "short"),
            (128, "long"),
            (160, "long"),
            (256, "long"),
        ):
            yield from keys("f16", (dim, dim), 32, work, capability)
        yield from keys(
            "f16", (24, 64), 8, "short", capability, permuted=True, closed=1, shared=False, wide=True
        )
        for dim in (64, 128, 256):
            yield from keys("f16", (dim, dim), 32, "long", capability, joined=True)
    yield from keys("bf16", (128, 64), 16, "window", 75, permuted=True, joined=True)
    yield from keys("f32", (256, 256), 32, "long", 70, joined=True)
    yield from keys("f16", (64, 64), 32, "long", 75, permuted=True, group=4)
    yield from keys("f16", (64, 64), 32, "long", 75, segments=True)
    yield from keys("f32", (64, 64), 8, "short", 70, permuted=True, closed=1, segments=True, orders=True)
    yield from keys("f32", (64, 64), 32, "window", 70)
    for capability in (70, 75):
        yield from keys("f16", (64, 64), 64, "long", capability, DENSE, segments=True)
    yield from keys("bf16", (256, 256), 32, "long", 70)
    yield from keys("bf16", (128, 64), 16, "window", 75, permuted=True)
    yield from keys("f32", (256, 256), 32, "long", 75)


def product():
    dims = [(dim, dim) for dim in (8, 32, 64, 96, 128, 256)] + [(64, 128)]
    for dtype, dim, work, capability in itertools.product(NAMES, dims, WORK, ARCHITECTURES):
        for block in (8, 16, 32, 64, 128):
            yield from keys(dtype, dim, block, work, capability)
        yield from keys(dtype, dim, 32, work, capability, permuted=True, shared=False, wide=True)


def measure(job):
    """One line of the report."""
    key, number, how = job
    launch, capability = manifest.launches(key, **how)[number], parse(key).capability
    row = dict(key=key, function=launch.function)
    try:
        return row | (measure_cuda if cuda.serves(capability) else measure_triton)(launch, capability)
    except Exception as error:
        while error.__cause__:  # Triton wraps what went wrong in where it did
            error = error.__cause__
        return row | dict(error=f"{type(error).__name__}: {error}"[-500:])


def measure_cuda(launch, capability):
    code = nvrtc.compile(cuda.FOLDER / f"{launch.function}.cu", launch.constexprs, f"sm_{capability}")
    registers, local = cubin.numbers(code)
    tensor, share = cubin.tensor_share(code)
    shared, threads = launch.options["shared"], 32 * launch.options["num_warps"]
    usage = dict(registers=registers, local=local, shared=shared, threads=threads)
    return usage | dict(tensor=tensor, share=round(share, 3))


def measure_triton(launch, capability):
    import triton
    from gpu import kernels

    compiled = kernels.compiled(launch, capability)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()
    return dict(registers=int(registers), local=int(stack), shared=compiled.metadata.shared)


def main(chosen, by_hand=()):
    jobs = [(key, number, {}) for key in chosen for number in range(len(manifest.launches(key)))] + [*by_hand]
    with multiprocessing.get_context("fork").Pool() as pool:
        failures = 0
        for row in pool.imap_unordered(measure, jobs):
            failures += "error" in row
            print(json.dumps(row), flush=True)
    return int(failures > 0)


if __name__ == "__main__":
    lists = {"--all": product, "--cuda": committed_cuda, "--more": more}
    if sys.argv[-1] == "--stages":
        print(measure(too_few_stages()))
        sys.exit()
    chosen = lists.get(sys.argv[-1], committed)
    sys.exit(main(dict.fromkeys(chosen()), three_warpgroups() if chosen is more else ()))
