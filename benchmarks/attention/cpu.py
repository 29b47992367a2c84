"""This library's CPU attention beside dense TensorFlow and PyTorch.

    python benchmarks/attention/cpu.py [--torch PYTHON] [--rounds 7] [--out JSON]

float32, 1 x 4 heads x 4096 x 64. PyTorch's scaled_dot_product_attention(is_causal=True) runs in a process of its own
(`--torch` names a Python that has it; without one its column stays empty), and the sides take turns, so that each
round is a comparison. Nothing is timed before it agrees with attention in float64.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.common import cases, machine, timing, truth

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

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


class Side:
    """Forward and backward of one implementation on fixed inputs."""

    def __init__(self, function, case: cases.Case):
        import tensorflow as tf

        widths = [case.heads // shared * case.dim for shared in (1, case.group, case.group, 1)]
        self.case = case
        *self.inputs, self.dout = (
            tf.random.stateless_normal((case.batch, case.time, width), (s, 0))
            for s, width in enumerate(widths)
        )
        sizes = dict(heads=case.heads, kv_heads=case.kv_heads)
        self.call = functools.partial(function, **sizes, **case.pattern)  # eagerly, as PyTorch
        with tf.GradientTape(persistent=True) as self.tape:
            self.tape.watch(self.inputs)
            self.out = self.call(*self.inputs)

    def forward(self):
        return self.call(*self.inputs)

    def backward(self):
        return self.tape.gradient(self.out, self.inputs, self.dout)

    def seconds(self, step: str) -> float:
        return timing.wall(getattr(self, step), 1, warm_up=0)[0]


class Torch:
    """The same in another process, which times itself."""

    def __init__(self, python: str, case: cases.Case):
        command = [python, "-c", TORCH, *map(str, (case.heads, case.time, case.dim, os.cpu_count()))]
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


def measure(sides: dict, rounds: int) -> dict:
    """{name: {step: median milliseconds}} of {name: Side or Torch}. Sides take turns of three runs or more and
    0.2 s or more, after two that warm up.
    """
    times: dict = {name: {"forward": [], "backward": []} for name in sides}
    for step in ("forward", "backward"):
        for name, side in list(sides.items()) * rounds:
            times[name][step] += turn(lambda side=side, step=step: 1e3 * side.seconds(step))
    return {
        name: {step: timing.median(some) for step, some in steps.items()} for name, steps in times.items()
    }


def turn(run) -> list[float]:
    """Milliseconds of the runs of one turn."""
    times: list[float] = []
    run(), run()
    while len(times) < 3 or sum(times) < 200:
        times.append(run())
    return times


def check(side: Side) -> float:
    """The largest relative error of output and gradients over all heads; ends the program where it is no rounding."""
    worst = 0.0
    for head in range(side.case.heads):
        columns = slice(head * side.case.dim, (head + 1) * side.case.dim)
        q, k, v, dout = (np.float64(x[0, :, columns]) for x in (*side.inputs, side.dout))
        want = truth.attention(np, side.case.sees(head), np.arange(side.case.time), q, k, v, dout)
        results = zip(("out", "dq", "dk", "dv"), (side.out, *side.backward()), strict=True)
        got = {name: np.float64(x[0, :, columns]) for name, x in results}
        worst = max(worst, truth.relative_error(np, got, want))
    if not worst < truth.TOLERANCE["float32"]:
        sys.exit(f"{side.case.name}: wrong by {worst:.2g}, relatively; nothing was timed")
    return worst


def elements(case: cases.Case) -> int:
    """Elements of all tiles that the forward plan visits."""
    import tensorflow as tf

    from blocksparse.plan import unpack
    from sparse_attention import blocksparse_attention_impl

    spec = [tf.TensorSpec((1, case.time, case.heads * case.dim))] * 3
    attend = tf.function(lambda q, k, v: blocksparse_attention_impl(q, k, v, case.heads, **case.pattern))
    captured = attend.get_concrete_function(*spec).captured_inputs
    plans = [x.numpy() for x in captured if x.dtype == tf.int32 and x.shape.rank == 1]
    total = 0
    for plan in map(unpack, plans):
        side = plan.by_query
        visits = side.offset[side.head_tiles[1:]] - side.offset[side.head_tiles[:-1]]
        total += int(visits[plan.head_index].sum()) * side.row_tile * side.column_tile
    return total


def memory_of_a_long_sequence() -> float:
    """MB above the inputs that local 128 at 65,536 positions takes, forward and backward, one head."""
    import tensorflow as tf

    from sparse_attention import blocksparse_attention_impl

    q, k, v, dout = (tf.random.stateless_normal((1, 65536, 64), (s, 0)) for s in range(4))
    before = machine.peak_memory()
    with tf.GradientTape() as tape:
        tape.watch((q, k, v))
        out = blocksparse_attention_impl(q, k, v, 1, "local", 128)
    tape.gradient(out, (q, k, v), dout)
    return (machine.peak_memory() - before) / 1e6


def compare(torch: Torch | None, rounds: int, chosen: Sequence[cases.Case] = cases.CPU) -> list[dict]:
    """One row a case: medians in milliseconds, and times as fast as PyTorch in the same rounds."""
    from sparse_attention import attention_impl, blocksparse_attention_impl

    rows = []
    for case in chosen:
        ours, dense = Side(blocksparse_attention_impl, case), Side(attention_impl, case)
        check(dense)
        row = {"case": case.name, "error": check(ours)}
        times = measure({"this": ours, **({"torch": torch} if torch else {})}, rounds)
        times |= measure({"dense": dense}, 1)
        row |= {f"{side} {step}": ms for side, steps in times.items() for step, ms in steps.items()}
        if torch:
            for step, asked in zip(("forward", "backward"), ASKED[case.name], strict=True):
                row[f"ratio {step}"], row[f"asked {step}"] = row[f"torch {step}"] / row[f"this {step}"], asked
        rows.append(row)
    return rows


def scale(rounds: int, time: int = 4096) -> dict:
    """How time grows with length, from `time` to four times that, with smaller blocks, and where heads share keys."""
    from sparse_attention import blocksparse_attention_impl

    result: dict = {"length": [], "blocks": [], "key heads": []}
    for case in cases.CPU:
        if case.name not in ("local 128", "fixed 128, c=32"):
            continue
        sizes = [cases.over(case, n) for n in (time, 4 * time)]
        small, large = measure(
            {each.time: Side(blocksparse_attention_impl, each) for each in sizes}, rounds
        ).values()
        work = elements(sizes[1]) / elements(sizes[0])
        sharing = {
            n: Side(blocksparse_attention_impl, replace(sizes[0], kv_heads=n)) for n in (case.heads, 1)
        }
        for heads, steps in measure(sharing, rounds).items():
            result["key heads"].append({"case": case.name, "key heads": heads, **steps})
        ratios = {step: large[step] / small[step] for step in small}
        result["length"].append({"case": case.name, **ratios, "work": max(work, 4.0)})
    blocks = {case.blocksize: cases.over(case, time) for case in cases.CPU_BLOCKS}
    times = measure({size: Side(blocksparse_attention_impl, case) for size, case in blocks.items()}, rounds)
    result["blocks"] = [{"blocksize": size, **steps} for size, steps in times.items()]
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--torch", metavar="PYTHON", help="a Python that has PyTorch")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, metavar="JSON")
    args = parser.parse_args()

    import tensorflow as tf

    from blocksparse.fused.op import kernel_name

    if kernel_name() != "cpu":
        sys.exit(f"this measures the CPU kernels; here attention runs on {kernel_name()}")
    megabytes = memory_of_a_long_sequence()
    torch = Torch(args.torch, cases.CPU[0]) if args.torch else None
    where = {
        "cpu": machine.processor(), "cores": os.cpu_count(), "load": os.getloadavg(), "tensorflow": tf.__version__,
        "torch": torch.version if torch else None, "rounds": args.rounds,
    }  # fmt: skip
    rows = compare(torch, args.rounds)
    result = {"machine": where, "memory MB": megabytes, "cases": rows, **scale(args.rounds)}
    print(table(rows))
    print(json.dumps({key: value for key, value in result.items() if key != "cases"}, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
