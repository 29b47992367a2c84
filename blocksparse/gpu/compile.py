"""Compile the GPU kernels of KEY...: python blocksparse/gpu/compile.py --out FOLDER KEY...

With Triton, for compute capability 7.0 and 7.5 with NVRTC. A process of its own: Triton and TensorFlow must not share
one (two copies of LLVM register the same options and abort). Writes FOLDER/KEY/manifest and one cubin a kernel; a key
appears whole or not at all. Ends with status 1 and one message a kernel that failed, which names kernel, shape, dtype
and capability; with status 3 where the compiler is not installed.
"""

import argparse
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

# Run as a script, this file's folder is first on sys.path; the one above makes it a package, `gpu`, of its own. As a
# part of blocksparse it would import that package, which imports TensorFlow.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpu import compilers, cuda, manifest, steps  # noqa: E402
from gpu.key import parse  # noqa: E402

NO_COMPILER = 3  # launcher/compiler.cc knows this status
SCRATCH_POINTERS = 2  # Triton ends every kernel's parameters with two; the launcher passes null for both


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder that gets one folder a key")
    parser.add_argument("--ptx", action="store_true", help="keys of 7.0 and 7.5 as PTX, for a newer GPU")
    parser.add_argument("--no-triton", action="store_true", help="as if Triton were not installed")
    parser.add_argument("keys", nargs="+", metavar="KEY")
    args = parser.parse_args()
    triton = not args.no_triton and compilers.has_triton()
    for without in (compilers.missing(capability_of(key), triton) for key in args.keys):
        if without:
            print(without, end="", file=sys.stderr)
            return NO_COMPILER
    jobs = [(key, number, args.ptx) for key in args.keys for number in range(len(recipe(key).launches(key)))]
    with multiprocessing.get_context("fork").Pool(min(len(jobs), os.cpu_count() or 1)) as pool:
        results = dict(zip(jobs, pool.starmap(try_compile, jobs), strict=True))
    failures = [result for result in results.values() if isinstance(result, str)]
    for key in args.keys:
        compiled = [result for (owner, _, _), result in results.items() if owner == key]
        if not any(isinstance(result, str) for result in compiled):
            publish(args.out, key, compiled)
    print("\n".join(failures), end="", file=sys.stderr)
    return bool(failures)


def recipe(key: str):
    """What knows the launches and temps of a key: steps of decoding, else passes of attention."""
    return steps if key.startswith("step-") else manifest


def capability_of(key: str) -> int:
    return (steps.parse if recipe(key) is steps else parse)(key).capability


def try_compile(key: str, number: int, ptx: bool):
    """(name, file name, code, symbol, warps, shared bytes) of one launch of `key`, or a sentence on what failed."""
    launch = recipe(key).launches(key)[number]
    capability = capability_of(key)
    try:
        if cuda.serves(capability):
            return launch.name, *compile_cuda(launch, capability, ptx)
        return launch.name, f"{launch.name}.cubin", *compile_triton(launch, capability)
    except Exception as error:  # Triton raises its own kinds, and LLVM's arrive as RuntimeError
        return f"kernel {launch.name} of {key} ({launch.options}): {type(error).__name__}: {error}"


def compile_triton(launch, capability: int) -> tuple[bytes, str, int, int]:
    from gpu import kernels  # imports Triton: what that raises is this kernel's failure

    compiled = kernels.compiled(launch, capability)
    check_parameters(compiled, len(launch.args))
    return compiled.asm["cubin"], compiled.metadata.name, kernels.warps(compiled), compiled.metadata.shared


def compile_cuda(launch, capability: int, ptx: bool) -> tuple[str, bytes, str, int, int]:
    from gpu.cuda import nvrtc  # loads the compiler's library: not in a process that has nothing for it

    target, suffix = (f"compute_{capability}", "ptx") if ptx else (f"sm_{capability}", "cubin")
    code = nvrtc.compile(cuda.FOLDER / f"{launch.function}.cu", launch.constexprs, target)
    numbers = launch.options["num_warps"], launch.options["shared"]
    return f"{launch.function}.{suffix}", code, launch.function, *numbers


def check_parameters(compiled, arguments: int) -> None:
    """The launcher passes `arguments` and two null scratch pointers: the kernel has to want exactly these."""
    entry = re.search(r"\.entry\s+\w+\s*\((.*?)\)", compiled.asm["ptx"], re.DOTALL).group(1)
    wanted = entry.count(".param")
    if wanted != arguments + SCRATCH_POINTERS:
        raise RuntimeError(
            f"it takes {wanted} parameters; the manifest gives {arguments} + {SCRATCH_POINTERS}"
        )
    if getattr(compiled.metadata, "global_scratch_size", 0):
        raise RuntimeError(f"it wants {compiled.metadata.global_scratch_size} bytes of global scratch")


def publish(out: Path, key: str, compiled: list) -> None:
    """Write the files beside their place, then rename the folder: nobody sees a part of it."""
    out.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=out))
    try:
        files = {}
        for launch, name, code, symbol, warps, shared in compiled:
            (fresh / name).write_bytes(code)
            files[launch] = (name, code, symbol, warps, shared)
        launches, temps = recipe(key).launches(key), recipe(key).temps(key)
        (fresh / "manifest").write_text(manifest.text(key, files, launches, temps))
        for path in [*fresh.iterdir(), fresh]:  # whatever the umask: what others may write is not loaded
            path.chmod(0o755 if path == fresh else 0o644)
        fresh.rename(out / key)
    except OSError:
        if not (out / key / "manifest").exists():  # else another process was first, with the same content
            raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
