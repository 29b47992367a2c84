"""Runs the CUDA sources, compiled for this CPU over emulation/device.h, on small cases; prints one JSON line a case.

    python cuda_cases.py CAPABILITY [NAME ...]

Without names: all cases for 75, but not all of segments; for 70 those in float16, since the other kernels are the same.
Lines are as interpreter_cases.py's. Lane by lane this is what the tensor cores compute, except for the order in which
one instruction adds. It says nothing of races, of speed, or of what NVRTC makes of the sources.
"""

import concurrent.futures
import ctypes
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import attention_cases as cases
import numpy as np

from blocksparse.gpu import cuda, manifest

EMULATION = Path(__file__).with_name("emulation")
SEGMENTED = (
    "segments in no order",
    "segments, one order a head",
    "segments, closed, several column tiles",
    "segments, key heads",
    "segments, joined",
)
FLAGS = ["-std=c++17", "-O0", "-shared", "-fPIC", "-fno-strict-aliasing", "-w"]


def build(launch, folder):
    """The library that emulates this launch."""
    macros = [f"-D{name}={value}" for name, value in launch.constexprs.items()]
    library = folder / f"{abs(hash((launch.function, *macros)))}.so"
    if not library.exists():
        source = f'-DKERNEL_SOURCE="{cuda.FOLDER / launch.function}.cu"'
        names = [source, f"-DKERNEL_NAME={launch.function}"]
        folders = [f"-I{EMULATION}", f"-I{cuda.FOLDER}"]
        own = library.with_suffix(
            f".{os.getpid()}"
        )  # another process may be building the same, or loading it
        command = ["g++", *FLAGS, *folders, *names, *macros, str(EMULATION / "launch.cc"), "-o", str(own)]
        subprocess.run(command, check=True)
        own.rename(library)
    return library


def run(launch, arrays, values, folder):
    """One launch over the case's arrays, in place."""
    slots = []
    for word in launch.args:
        kind, what = word.split(":")
        if kind == "p":
            slots.append(ctypes.c_void_p(arrays[what].ctypes.data))
        else:
            slots.append(
                ctypes.c_float(values[what]) if kind == "f" else ctypes.c_int(cases.eval_(what, values))
            )
    addresses = (ctypes.c_void_p * len(slots))(*(ctypes.addressof(slot) for slot in slots))
    ctypes.CDLL(str(build(launch, folder))).launch(cases.eval_(launch.grid[0], values), addresses)


def attention(capability, folder):
    """What cases.errors and cases.spread call."""

    def results_of(case, tensors, dout, dlse):
        arrays = cases.arrays_of(case, tensors, dout, dlse)
        for key, plan in cases.passes_of(case, capability):
            arrays |= cases.plan_arrays(plan)
            values = cases.values_of(case, plan)
            for name, size in manifest.temps(key):
                arrays[name] = np.full(cases.eval_(size, values), 0xFF, np.uint8)
            for launch in manifest.launches(key):
                run(launch, arrays, values, folder)
        return cases.results_of(case, arrays)

    return results_of


def line(job):
    kind, name, capability, folder = job
    check, table = (cases.errors, cases.CASES) if kind == "numbers" else (cases.spread, cases.POISONED)
    tolerance = cases.TOLERANCE[table[name].dtype] if kind == "numbers" else 0
    report = check(table[name], attention(capability, folder))
    return json.dumps(dict(case=name, capability=capability, tolerance=tolerance, errors=report))


def takes(case):
    """Whether these kernels take it: they do not know of tensors that end before the plan."""
    return not case.missing


def is_usual(name, case, capability):
    """Whether it runs when no case is named: the kernels that cut by segments are the same for both capabilities, and
    each case compiles two more.
    """
    if capability < 75:
        return case.dtype == "f16" and ("segments" not in name or name == "segments, per head")
    return "segments" not in name or name in SEGMENTED


def main(capability, names):
    tables = dict(numbers=cases.CASES, poison=cases.POISONED)
    jobs = [(kind, name) for kind, table in tables.items() for name in table if takes(table[name])]
    if not names:
        names = [name for kind, name in jobs if is_usual(name, tables[kind][name], capability)]
    with tempfile.TemporaryDirectory() as folder:
        chosen = [(*job, capability, Path(folder)) for job in jobs if not names or job[1] in names]
        with concurrent.futures.ProcessPoolExecutor(os.cpu_count()) as pool:
            for text in pool.map(line, chosen):
                print(text, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
