"""Starting while the kernel before still runs (programmatic dependent launch, from compute capability 9.0 on)."""

import triton
import triton.language as tl


@triton.jit
def begin(PDL: tl.constexpr):
    """The kernel behind may take what room is left on the GPU from now on."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def wait(PDL: tl.constexpr):
    """Until all that kernels before have written can be read, and nothing of theirs is still being read."""
    if PDL:
        tl.extra.cuda.gdc_wait()
