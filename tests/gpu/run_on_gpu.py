"""Everything there is to check on a machine with a GPU: python tests/gpu/run_on_gpu.py [FOLDER for logs].

The GPU suite, the engine's own tests on the GPU, compute-sanitizer over the kernels where there is one, and the table
of attention.py in float16 and bfloat16. Ends with status 1 if any of them failed.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PYTEST = [sys.executable, "-m", "pytest", "-c", "tests/pytest.ini", "-q"]
SANITIZED = "tests/gpu/test_gpu_device.py::test_shapes"  # every way a kernel indexes, on small inputs


def steps():
    """(name, command) in the order they run."""
    yield "suite", [*PYTEST, "-rA", "tests/gpu"]
    yield "engine", [*PYTEST, "tests/engine"]
    if shutil.which("compute-sanitizer"):
        for tool in ("memcheck", "racecheck"):
            sanitizer = [
                "compute-sanitizer",
                "--tool",
                tool,
                "--target-processes",
                "all",
                "--error-exitcode",
                "9",
            ]
            sanitizer += ["--kernel-name", "kernel_substring=attention"]
            yield tool, [*sanitizer, *PYTEST, SANITIZED]
    for dtype in ("fp16", "bf16"):
        yield f"attention {dtype}", [sys.executable, "attention.py", dtype]


def main() -> int:
    logs = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="gpu-test-"))
    logs.mkdir(parents=True, exist_ok=True)
    environment = dict(
        os.environ, TF_FORCE_GPU_ALLOW_GROWTH="true", TF_CPP_MIN_LOG_LEVEL="3", PYTHONUNBUFFERED="1"
    )
    failed = []
    for name, command in steps():
        log = logs / f"{name.replace(' ', '_')}.log"
        print(f"== {name}: {' '.join(command)} > {log}", flush=True)
        with log.open("w") as output:
            status = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
            )
        print(log.read_text()[-1500:])
        if status.returncode:
            failed.append(name)
    print(f"FAILED: {', '.join(failed)}" if failed else "passed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
