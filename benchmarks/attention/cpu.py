"""This library's CPU attention beside dense TensorFlow and PyTorch: the table, the JSON and the plot.

    python benchmarks/attention_cpu.py [--torch PYTHON] [--rounds 7] [--out JSON] [--plot PNG]

float32, 1 x 4 heads x 4096 x 64. PyTorch's scaled_dot_product_attention(is_causal=True) runs in a process of its own
(`--torch` names a Python that has it; without one its column stays empty), and the sides take turns, so that each
round is a comparison. Nothing is timed before it agrees with the dense implementation.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

HEADS, HEAD_DIM, TIME = 4, 64, 4096
TOLERANCE = 2e-5  # relative to the largest entry
ASKED = {  # times as fast as PyTorch's dense causal attention: forward, backward
    "all": (1.4, 1.4),
    "fixed 128, c=32": (4, 4),
    "local 128": (15, 15),
    "strided 128": (30, 40),
}
TORCH = """
import sys, time, torch
heads, n, d, cores = map(int, sys.argv[1:])
torch.set_num_threads(cores)
q, k, v, dout = (torch.randn(1, n, heads, d).transpose(1, 2).detach().requires_grad_() for _ in range(4))
def forward():
    with torch.no_grad():
        torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
def backward():
    torch.autograd.grad(out, (q, k, v), dout.detach(), retain_graph=True)
print(torch.__version__, flush=True)
for line in sys.stdin:
    start = time.perf_counter()
    globals()[line.strip()]()
    print(time.perf_counter() - start, flush=True)
"""


@dataclass(frozen=True)
class Case:
    """Arguments of attention_impl."""

    attn_mode: str
    local_attn_ctx: int | None = None
    blocksize: int = 32
    num_verts: int | None = None
    vertsize: int | None = None


CASES = {
    "all": Case("all"),
    "fixed 128, c=32": Case("fixed", 128, num_verts=4, vertsize=1),
    "local 128": Case("local", 128),
    "strided 128": Case("strided", 128),
}
BLOCKS = {bs: Case("fixed", 128, bs, 2, 64 // bs) for bs in (8, 64)}


class Side:
    """Forward and backward of one implementation on fixed inputs."""

    def __init__(self, function, case: Case, time_steps: int, heads: int = HEADS):
        import tensorflow as tf

        self.inputs = [
            tf.random.stateless_normal((1, time_steps, heads * HEAD_DIM), (s, 0)) for s in range(3)
        ]
        self.dout = tf.random.stateless_normal((1, time_steps, heads * HEAD_DIM), (3, 0))
        self.call = functools.partial(function, heads=heads, **asdict(case))  # eagerly, as PyTorch
        with tf.GradientTape(persistent=True) as self.tape:
            self.tape.watch(self.inputs)
            self.out = self.call(*self.inputs)

    def forward(self):
        return self.call(*self.inputs)

    def backward(self):
        return self.tape.gradient(self.out, self.inputs, self.dout)


class Torch:
    """The same in another process; measures itself."""

    def __init__(self, python: str):
        command = [python, "-c", TORCH, *map(str, (HEADS, TIME, HEAD_DIM, os.cpu_count()))]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={**os.environ, "OMP_WAIT_POLICY": "passive"},  # its threads are not to spin while others run
        )
        self.version = self.process.stdout.readline().strip()

    def seconds(self, step: str) -> float:
        self.process.stdin.write(step + "\n")
        return float(self.process.stdout.readline())


def measure(sides: dict[str, object], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Milliseconds of every run. Sides take turns of three runs or more and 0.2 s or more, after two that warm up."""
    times = {name: {"forward": [], "backward": []} for name in sides}
    for step in ("forward", "backward"):
        for name, side in list(sides.items()) * rounds:
            run = side.seconds if isinstance(side, Torch) else functools.partial(seconds, side)
            times[name][step] += turn(lambda run=run, step=step: 1e3 * run(step))
    return times


def turn(run) -> list[float]:
    """Milliseconds of the runs of one turn."""
    times: list[float] = []
    run(), run()
    while len(times) < 3 or sum(times) < 200:
        times.append(run())
    return times


def seconds(side: Side, step: str) -> float:
    start = time.perf_counter()
    getattr(side, step)()
    return time.perf_counter() - start


def check(name: str, got: Side, want: Side) -> float:
    """The larger relative error of output and gradients; raises where it is beyond tolerance."""
    import numpy as np

    worst = 0.0
    for a, b in zip([got.out, *got.backward()], [want.out, *want.backward()], strict=True):
        worst = max(worst, float(np.abs(a - b).max() / np.abs(b).max()))
    if not worst < TOLERANCE:
        raise SystemExit(f"{name}: wrong by {worst:.2g} of the largest entry; nothing was timed")
    return worst


def elements(function, case: Case, time_steps: int) -> int:
    """Elements of all tiles that the forward plan visits."""
    import tensorflow as tf

    from blocksparse.plan import unpack

    spec = [tf.TensorSpec((1, time_steps, HEADS * HEAD_DIM))] * 3
    traced = tf.function(lambda q, k, v: function(q, k, v, HEADS, **asdict(case))).get_concrete_function(
        *spec
    )
    plans = [x.numpy() for x in traced.captured_inputs if x.dtype == tf.int32 and x.shape.rank == 1]
    total = 0
    for plan in map(unpack, plans):
        side = plan.by_query
        visits = side.offset[side.head_tiles[1:]] - side.offset[side.head_tiles[:-1]]
        total += int(visits[plan.head_index].sum()) * side.row_tile * side.column_tile
    return total


def memory_of_a_long_sequence(function) -> float:
    """MB above the inputs that local 128 at 65,536 positions takes, forward and backward, one head."""
    import tensorflow as tf

    case, n = CASES["local 128"], 65536
    q, k, v, dout = (tf.random.stateless_normal((1, n, HEAD_DIM), (s, 0)) for s in range(4))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tf.GradientTape() as tape:
        tape.watch((q, k, v))
        out = function(q, k, v, 1, **asdict(case))
    tape.gradient(out, (q, k, v), dout)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3


def compare(torch: Torch | None, rounds: int) -> list[dict]:
    """One row a case: medians in milliseconds, and times as fast as PyTorch in the same rounds."""
    from sparse_attention import attention_impl, blocksparse_attention_impl

    rows = []
    for name, case in CASES.items():
        ours, dense = Side(blocksparse_attention_impl, case, TIME), Side(attention_impl, case, TIME)
        row = {"case": name, "error": check(name, ours, dense)}
        times = measure({"this": ours, **({"torch": torch} if torch else {})}, rounds)
        times |= measure({"dense": dense}, 1)
        for side, steps in times.items():
            for step, values in steps.items():
                row[f"{side} {step}"] = statistics.median(values)
        if torch:
            for step, asked in zip(("forward", "backward"), ASKED[name], strict=True):
                row[f"ratio {step}"], row[f"asked {step}"] = row[f"torch {step}"] / row[f"this {step}"], asked
        rows.append(row)
    return rows


def scale(rounds: int) -> dict:
    """How time grows with length and with smaller blocks."""
    from sparse_attention import blocksparse_attention_impl as function

    result: dict = {"length": [], "blocks": []}
    for name in ("local 128", "fixed 128, c=32"):
        case = CASES[name]
        times = measure({str(n): Side(function, case, n) for n in (TIME, 4 * TIME)}, rounds)
        work = elements(function, case, 4 * TIME) / elements(function, case, TIME)
        small, large = (
            {step: statistics.median(t) for step, t in times[str(n)].items()} for n in (TIME, 4 * TIME)
        )
        ratios = {step: large[step] / small[step] for step in small}
        result["length"].append({"case": name, **ratios, "work": max(work, 4.0)})
    times = measure({str(bs): Side(function, case, TIME) for bs, case in BLOCKS.items()}, rounds)
    for bs, steps in times.items():
        result["blocks"].append(
            {"blocksize": int(bs), **{step: statistics.median(t) for step, t in steps.items()}}
        )
    return result


def table(rows: list[dict]) -> str:
    """The comparison as Markdown."""
    steps = ("forward", "backward")
    head = ["pattern", *(f"{side} {step}" for step in steps for side in ("this", "dense", "torch", "ratio"))]
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    for row in rows:
        cells = [f"{row[column]:.2f}" if column in row else "" for column in head[1:]]
        lines.append("| " + " | ".join([row["case"], *cells]) + " |")
    return "\n".join(lines)


def plot(rows: list[dict], path: str) -> None:
    """Milliseconds of every side, logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 3.6), sharey=True, layout="constrained")
    for axis, step in zip(axes, ("forward", "backward"), strict=True):
        for at, (side, label) in enumerate(
            (("torch", "PyTorch, dense causal"), ("dense", "dense TensorFlow"), ("this", "this library"))
        ):
            values = [row.get(f"{side} {step}", float("nan")) for row in rows]
            axis.bar([x + 0.27 * at for x in range(len(rows))], values, 0.25, label=label)
        axis.set_xticks([x + 0.27 for x in range(len(rows))], [row["case"] for row in rows])
        axis.set_yscale("log")
        axis.set_title(step)
    axes[0].set_ylabel("milliseconds")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--torch", metavar="PYTHON", help="a Python that has PyTorch")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", metavar="JSON")
    parser.add_argument("--plot", metavar="PNG")
    arguments = parser.parse_args()

    import tensorflow as tf

    from blocksparse.fused import op
    from sparse_attention import blocksparse_attention_impl

    if op.kernel_name() != "cpu":
        sys.exit(f"this measures the CPU kernels; here attention runs on {op.kernel_name()}")
    megabytes = memory_of_a_long_sequence(blocksparse_attention_impl)
    torch = Torch(arguments.torch) if arguments.torch else None
    with open("/proc/cpuinfo") as lines:
        cpu = next(
            (line.split(":")[1].strip() for line in lines if line.startswith("model name")),
            platform.machine(),
        )
    machine = {
        "cpu": cpu, "cores": os.cpu_count(), "load": os.getloadavg(), "tensorflow": tf.__version__,
        "torch": torch.version if torch else None, "rounds": arguments.rounds,
    }  # fmt: skip
    rows = compare(torch, arguments.rounds)
    result = {"machine": machine, "memory MB": megabytes, "cases": rows, **scale(arguments.rounds)}
    print(table(rows))
    print(json.dumps({key: value for key, value in result.items() if key != "cases"}, indent=1))
    if arguments.out:
        with open(arguments.out, "w") as file:
            json.dump(result, file, indent=1)
            file.write("\n")
    if arguments.plot:
        plot(rows, arguments.plot)


if __name__ == "__main__":
    main()
