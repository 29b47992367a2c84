"""Runs the kernels in Triton's interpreter on small cases and prints one JSON line a case. Imports no TensorFlow.

    TRITON_INTERPRET=1 python interpreter_cases.py [NAME ...]

Each line has the relative error of every result against a float64 NumPy oracle, or what else a case checks.
"""

import json
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import attention_cases as cases
import numpy as np
import triton.language as tl
import triton.runtime.interpreter as interpreter

from blocksparse.gpu import kernels, manifest


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


def dot(builder, a, b, d, *_):
    """The interpreter's own multiplies bfloat16's bit patterns."""
    a, b = (cases.from_bfloat16(x.data) if x.dtype.scalar == tl.bfloat16 else x.data for x in (a, b))
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


def run(key, buffers, values, split):
    """What the op does: temps, then every launch with its arguments evaluated."""
    interpreter._interpreter = Guard(MEMORY, buffers)
    for name, size in manifest.temps(key):
        buffers[name] = Tensor(
            np.full(cases.eval_(size, values), 0xFF, np.uint8), "int32" if "cut_" in name else "float32"
        )
    for launch in manifest.launches(str(key)):
        arguments = []
        for word in launch.args:
            kind, what = word.split(":")
            arguments.append(
                buffers[what]
                if kind == "p"
                else values[what]
                if kind == "f"
                else int(cases.eval_(what, values))
            )
        grid = tuple(cases.eval_(size, values) for size in launch.grid)
        changes = dict(SPLIT=split, AT_ONCE=4)  # few at once, so that small cases take several rounds
        constexprs = {name: changes.get(name) or value for name, value in launch.constexprs.items()}
        names = [name for name, kind in launch.signature.items() if kind != "constexpr"]
        kernel = getattr(kernels, launch.function)
        given = dict(zip(names, arguments, strict=True))
        kernel[grid](**kernels.grouped(kernel.arg_names, given, constexprs))


def attention(case, tensors, dout, dlse):
    """Forward and backward through the manifests; results as float arrays."""
    arrays = cases.arrays_of(case, tensors, dout, dlse)
    types = dict.fromkeys(arrays, cases.NAMES[case.dtype]) | dict.fromkeys(("lse", "dlse"), "float32")
    types |= dict.fromkeys(("query_segments", "key_segments"), "int32")
    buffers = {name: Tensor(array, types[name]) for name, array in arrays.items()}
    for key, plan in cases.passes_of(case):
        buffers |= {name: Tensor(array, "int32") for name, array in cases.plan_arrays(plan).items()}
        run(key, buffers, cases.values_of(case, plan), case.split)
    return cases.results_of(case, arrays)


def main(names):
    for kind, check in ((cases.CASES, cases.errors), (cases.POISONED, cases.spread)):
        for name, case in kind.items():
            if not names or name in names:
                tolerance = cases.TOLERANCE[case.dtype] if kind is cases.CASES else 0
                print(
                    json.dumps(dict(case=name, tolerance=tolerance, errors=check(case, attention))),
                    flush=True,
                )


if __name__ == "__main__":
    main(sys.argv[1:])
