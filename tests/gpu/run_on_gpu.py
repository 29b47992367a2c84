"""Everything there is to check on a machine with a GPU.

The GPU suite; then the engine's and attention's own tests on the GPU, beside compute-sanitizer over the kernels where
there is one; then, alone on the machine, what the tests of time and memory measure and the tables of attention.py in
float16 and bfloat16. Ends with status 1 if any of them failed, and leaves report.txt among its logs: the machine, what
passed, how long it took and the tables, in one file to send to somebody else.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PYTEST = [sys.executable, "-m", "pytest", "-c", "tests/pytest.ini", "-q"]
SEVERAL = ["-n", str(min(8, os.cpu_count() or 1)), "--dist", "worksteal"]
SPEED = "tests/gpu/test_gpu_speed.py"
MODEL = ["tests/model/test_model_gpu.py", "tests/model/test_model_gpu_sampling.py"]
ELSEWHERE = ["--ignore=tests/attention/test_attention_memory.py"]  # it measures the host's memory
LARGE = "two_to_the_31"  # takes 30 GB: alone on the card
SANITIZED = [  # every way a kernel indexes, on small inputs
    "tests/gpu/test_gpu_device.py::test_shapes",
    "tests/gpu/test_gpu_device.py::test_lengths_that_fill_no_block",
    "tests/gpu/test_gpu_device.py::test_shapes_in_tiles_of_their_own",
    "tests/gpu/test_gpu_device.py::test_lengths_in_tiles_of_their_own",
]
# Racecheck takes the way in which Triton starts and ends a kernel's warp roles, a byte written before a barrier and
# read behind it, for a race; float32 has no such kernels, nor has a GPU before compute capability 8.0.
FLOAT32 = ["-k", "float32"]
PACKAGES = ("tensorflow", "triton", "nvidia-cuda-nvrtc-cu12", "numpy")
ASK = """
import json, tensorflow as tf
from blocksparse.native.cuda import capabilities
gpus = tf.config.list_physical_devices("GPU")
names = [tf.config.experimental.get_device_details(gpu).get("device_name") for gpu in gpus]
print(json.dumps(dict(gpus=names, kernels_of=capabilities())))
"""


def machine() -> dict:
    """What the report says of this machine; kernels_of: each GPU's compute capability times ten, or the override."""
    asked = subprocess.run([sys.executable, "-c", ASK], cwd=ROOT, capture_output=True, text=True)
    about = (
        json.loads(asked.stdout.splitlines()[-1]) if asked.returncode == 0 else dict(gpus=[], kernels_of=[])
    )
    query = [
        "nvidia-smi",
        "--query-gpu=name,compute_cap,memory.total,driver_version",
        "--format=csv,noheader",
    ]
    if shutil.which(query[0]):
        about["driver"] = subprocess.run(query, capture_output=True, text=True).stdout.strip().splitlines()
    for name in PACKAGES:
        try:
            about[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            about[name] = None
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    return about | dict(python=platform.python_version(), system=platform.platform(), commit=commit or None)


def stages(roles: bool):
    """{name: command} of what runs side by side, one stage after the other; roles: kernels may have warp roles."""
    checked = dict(memcheck=SANITIZED, racecheck=[*SANITIZED, *(FLOAT32 if roles else [])])
    rest = [f"--ignore={SPEED}", "-k", f"not {LARGE}"]
    yield {"suite": [*PYTEST, *SEVERAL, "-rA", "--durations=15", "tests/gpu", *MODEL, *rest]}
    yield {"large": [*PYTEST, "tests/gpu", "-k", LARGE]}
    together = {
        "engine": [*PYTEST, *SEVERAL, "--durations=10", "tests/engine", "tests/attention", *ELSEWHERE]
    }
    if shutil.which("compute-sanitizer"):
        for tool, tests in checked.items():
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
            together[tool] = [*sanitizer, *PYTEST, *tests]
    yield together
    yield {"speed": [*PYTEST, "-s", SPEED]}
    for dtype in ("fp16", "bf16"):
        yield {f"attention-{dtype}": [sys.executable, "attention.py", dtype]}


def run(stage: dict[str, list[str]], logs: Path) -> dict[str, int]:
    """{name: status} of what the stage ran."""
    environment = os.environ | dict(TF_FORCE_GPU_ALLOW_GROWTH="true", TF_CPP_MIN_LOG_LEVEL="3")
    environment |= dict(PYTHONUNBUFFERED="1")
    started, running = time.monotonic(), {}
    for name, command in stage.items():
        print(f"== {name}: {' '.join(command)}", flush=True)
        # Out of TensorFlow's pool every tensor would be inside memory that the process owns.
        settings = dict(TF_GPU_ALLOCATOR="cuda_malloc_async") if name == "memcheck" else {}
        with (logs / f"{name}.log").open("w") as log:
            running[name] = subprocess.Popen(
                command, cwd=ROOT, env=environment | settings, stdout=log, stderr=subprocess.STDOUT
            )
    for name, process in running.items():
        process.wait()
        print((logs / f"{name}.log").read_text()[-1500:])
        print(f"{name}: status {process.returncode} after {time.monotonic() - started:.0f} s", flush=True)
    return {name: process.returncode for name, process in running.items()}


def report(about: dict, results: dict[str, int], logs: Path) -> str:
    """The machine, a line for each command (of a test run its summary), the tables whole."""
    lines = [f"{name}: {value}" for name, value in about.items()]
    for name, status in results.items():
        output = (logs / f"{name}.log").read_text().strip().splitlines()
        lines += ["", f"{name}: {'passed' if status == 0 else f'FAILED, status {status}'}"]
        lines += output if name.startswith("attention-") or status else output[-1:]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--logs", type=Path, help="folder for the whole output")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="of suite, large, engine, memcheck, racecheck, speed ..."
    )
    args = parser.parse_args()
    logs = args.logs or Path(tempfile.mkdtemp(prefix="gpu-test-"))
    logs.mkdir(parents=True, exist_ok=True)
    about, results = machine(), {}
    print(json.dumps(about, indent=1), flush=True)
    for stage in stages(roles=any(capability >= 80 for capability in about["kernels_of"])):
        results |= run({name: stage[name] for name in stage if not args.only or name in args.only}, logs)
    (logs / "report.txt").write_text(report(about, results, logs))
    failed = [name for name, status in results.items() if status]
    print(
        f"FAILED: {', '.join(failed)}" if failed else "passed", f"(logs in {logs}; report: {logs}/report.txt)"
    )
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
