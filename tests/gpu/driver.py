"""A GPU through its driver alone: memory, modules, launches and times, with ctypes."""

import ctypes
import functools
import itertools

import numpy as np

SHARED_LIMIT, REGISTERS, LOCAL = 8, 4, 3  # CUfunction_attribute


class DriverError(RuntimeError):
    """What the driver answered, by its name."""


@functools.cache
def cuda():
    """The driver, with a context on the first GPU."""
    library = ctypes.CDLL("libcuda.so.1")
    _call(library, "cuInit", 0)
    device, context = ctypes.c_int(), ctypes.c_void_p()
    _call(library, "cuDeviceGet", ctypes.byref(device), 0)
    _call(library, "cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    _call(library, "cuCtxSetCurrent", context)
    return library


def call(name, *arguments):
    _call(cuda(), name, *arguments)


def _call(library, name, *arguments):
    status = getattr(library, name)(*arguments)
    if status:
        text = ctypes.c_char_p()
        library.cuGetErrorName(status, ctypes.byref(text))
        raise DriverError(f"{name}: {(text.value or b'?').decode()}")


class Memory:
    """An array's copy on the GPU."""

    def __init__(self, array):
        self.array, self.pointer = np.ascontiguousarray(array), ctypes.c_uint64()
        call("cuMemAlloc_v2", ctypes.byref(self.pointer), ctypes.c_size_t(max(16, self.array.nbytes)))
        self.write()

    def write(self):
        call(
            "cuMemcpyHtoD_v2",
            self.pointer,
            ctypes.c_void_p(self.array.ctypes.data),
            ctypes.c_size_t(self.array.nbytes),
        )

    def read(self):
        out = np.empty_like(self.array)
        call("cuMemcpyDtoH_v2", ctypes.c_void_p(out.ctypes.data), self.pointer, ctypes.c_size_t(out.nbytes))
        return out

    def free(self):
        call("cuMemFree_v2", self.pointer)


class Kernel:
    """One function of a cubin or of PTX."""

    def __init__(self, code, name, warps, shared):
        self.module, self.function = ctypes.c_void_p(), ctypes.c_void_p()
        call("cuModuleLoadData", ctypes.byref(self.module), ctypes.c_char_p(code))
        call("cuModuleGetFunction", ctypes.byref(self.function), self.module, name.encode())
        call("cuFuncSetAttribute", self.function, SHARED_LIMIT, shared)
        self.threads, self.shared = 32 * warps, shared

    def attribute(self, which):
        value = ctypes.c_int()
        call("cuFuncGetAttribute", ctypes.byref(value), which, self.function)
        return value.value

    def launch(self, blocks, slots):
        """slots: ctypes values, in the order of the kernel's parameters."""
        addresses = (ctypes.c_void_p * len(slots))(*(ctypes.addressof(slot) for slot in slots))
        call(
            "cuLaunchKernel",
            self.function,
            blocks,
            1,
            1,
            self.threads,
            1,
            1,
            self.shared,
            None,
            addresses,
            None,
        )


def synchronize():
    call("cuCtxSynchronize")


def milliseconds(work, repeats=20):
    """Median time of one call of work()."""
    events = [ctypes.c_void_p() for _ in range(repeats + 1)]
    for event in events:
        call("cuEventCreate", ctypes.byref(event), 0)
    for _ in range(3):
        work()
    for event in events[:-1]:
        call("cuEventRecord", event, None)
        work()
    call("cuEventRecord", events[-1], None)
    synchronize()
    times, one = [], ctypes.c_float()
    for first, second in itertools.pairwise(events):
        call("cuEventElapsedTime", ctypes.byref(one), first, second)
        times.append(one.value)
    for event in events:
        call("cuEventDestroy_v2", event)
    return float(np.median(times))
