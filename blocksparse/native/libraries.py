"""What is compiled: each shared object's sources and how g++ is to read them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]  # the folder blocksparse


@dataclass(frozen=True)
class Unit:
    """Sources that g++ reads as one: TensorFlow's headers take 7 s, so what includes them is compiled together."""

    sources: tuple[str, ...]  # relative to ROOT
    flags: tuple[str, ...]  # {include} stands for TensorFlow's headers


@dataclass(frozen=True)
class Library:
    """One shared object: units compiled side by side, then linked."""

    name: str
    units: tuple[Unit, ...]
    tuned: bool = True  # compiled for the CPU at hand
    link: tuple[str, ...] = ()  # {lib} stands for the folder of TensorFlow's libraries
    # Those of TensorFlow's headers that not every version ships.
    headers: tuple[str, ...] = field(default=(), repr=False)

    def sources(self) -> list[Path]:
        """Every file that goes into it, headers included."""
        named = [ROOT / source for unit in self.units for source in unit.sources]
        headers = {header for source in named for header in source.parent.glob("*.h")}
        return [*named, *sorted(headers | set((ROOT / "cpu").glob("*.h")))]


# Eigen's half-precision packets for AVX512-FP16 do not compile in the headers that TensorFlow 2.21 ships: without this
# line -march=native fails on every processor from Sapphire Rapids on. Products here are float32, nothing is lost.
_EIGEN = ("-U__AVX512FP16__",)
_TENSORFLOW_CC = ("-L{lib}", "-l:libtensorflow_cc.so.2")  # where XLA's registry is
_FAST, _SMALL = ("-O3", *_EIGEN), ("-O1", *_EIGEN)
_PLAN = ("cpu/plan.cc", "cpu/plan_check.cc")
CPU = Library(
    "cpu",
    (
        Unit(("cpu/ops.cc", "cpu/kernels.cc", "cpu/plan_op.cc", "xla/on_demand.cc"), _SMALL),
        Unit(("cpu/query_tile.cc", "cpu/key_tile.cc"), _FAST),
        Unit(("cpu/forward.cc", "cpu/backward.cc", "cpu/call.cc", *_PLAN), _FAST),
    ),
    link=_TENSORFLOW_CC,
)
# The kernels themselves are compiled when first needed, by Triton or NVRTC: this is what launches them.
GPU = Library(
    "gpu",
    (
        Unit(
            (
                "gpu/launcher/attention_gpu.cc",
                "gpu/launcher/steps_gpu.cc",
                "gpu/launcher/plan_cache.cc",
                "gpu/launcher/timing.cc",
            ),
            _SMALL,
        ),
        Unit(
            (
                "gpu/launcher/launcher.cc",
                "gpu/launcher/padding.cc",
                "gpu/launcher/steps.cc",
                "gpu/launcher/kernel_cache.cc",
                "gpu/launcher/compiler.cc",
                "gpu/launcher/exports.cc",
                *_PLAN,
            ),
            _SMALL,
        ),
    ),
    tuned=False,
    link=("-ldl",),
)
# Its own library because XLA's headers take half a minute: xla/on_demand.cc asks for it when XLA first meets the op.
XLA = Library(
    "xla",
    (
        Unit(
            ("xla/attention_xla.cc",),
            ("-O0", "-I{include}/external/highwayhash", "-I{include}/external/farmhash_archive/src"),
        ),
        Unit(("xla/custom_call.cc", *_PLAN), _SMALL),
    ),
    tuned=False,
    link=_TENSORFLOW_CC,
    headers=("xla/ffi/api/ffi.h",),  # from 2.20 on
)
