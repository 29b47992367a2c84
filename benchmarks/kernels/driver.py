"""Launching a compiled kernel without TensorFlow: five calls of CUDA's driver."""

from __future__ import annotations

import ctypes


class Driver:
    """libcuda of this machine."""

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
