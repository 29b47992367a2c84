"""This library's GPU attention beside its peers: the table, the JSON and the plot.

    python benchmarks/attention_gpu.py [--out results/attention_gpu.json] [--plot FILE.png]
    python benchmarks/attention_gpu.py --tune [--capability 90]      writes blocksparse/gpu/tables/sm_<capability>.json
    python benchmarks/attention_gpu.py --from A.json B.json ...      table, JSON and plot of measurements already made

The library runs through TensorFlow and the peers through PyTorch, each in a process of its own, on one card, one after
the other: medians of device time, the cache flushed before every run, each checked against float32 before it is timed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import without_tensorflow  # noqa: F401  first

import gpu_cases  # isort: skip
import gpu_tuning  # isort: skip
from blocksparse.gpu import tiles  # isort: skip

HERE = Path(__file__).resolve().parent
BYTES_PER_MS = 3.0e9  # a large device-to-device copy on the H100, bytes read plus bytes written
FLOPS_PER_MS = 790e9  # an 8192-cube fp16 product on it
EXPONENTIALS_PER_MS = 132 * 16 * 1.755e6  # multiprocessors x exp2 a clock x kHz

# Ratios asked over FlexAttention: forward, backward.
ASKED = {
    "enwik8 fixed c32": (6, 5),
    "enwik8 fixed c8": (15, 14),
    "enwik8 local": (1.8, 1.6),
    "cifar local": (1.6, 2.2),
    "cifar strided": (3, 2),
    "imagenet64 local": (1.6, 1.5),
    "imagenet64 strided": (2, 2),
    "enwik8 all": (1.2, 1.2),
    "cifar all": (1.2, 1.2),
    "imagenet64 all": (1.2, 1.2),
}


def floors(case: gpu_cases.Case) -> tuple[float, float]:
    """Milliseconds that no kernel of this method beats, forward and backward.

    The largest of bytes moved once, matrix products over every element of a visited tile (2 forward; 7 in the two
    backward passes), and exponentials (one an element, two backward).
    """
    work = gpu_cases.visible_elements(case) / (case.batch * case.heads * case.time)
    choice = tiles.choose("float16", case.dim, case.dim, case.bs, work, 90)
    plan = gpu_cases.plan(case, *choice, gpu_cases.blocks(case))
    sides = [elements(case, side) for side in (plan.by_query, plan.by_key)]
    tensor = 2 * case.batch * case.time * case.heads * case.dim
    forward = max(
        4 * tensor / BYTES_PER_MS, sides[0] * 4 * case.dim / FLOPS_PER_MS, sides[0] / EXPONENTIALS_PER_MS
    )
    products = (3 * sides[0] + 4 * sides[1]) * 2 * case.dim
    backward = max(8 * tensor / BYTES_PER_MS, products / FLOPS_PER_MS, sum(sides) / EXPONENTIALS_PER_MS)
    return forward, backward


def elements(case: gpu_cases.Case, side) -> int:
    """Score elements in the tiles that one side of the plan visits, over batch and heads."""
    distinct = len(side.head_tiles) - 1
    return case.batch * case.heads * len(side.columns) * side.row_tile * side.column_tile // distinct


def table(rows: list[dict]) -> list[dict]:
    """One entry a case and pass: ours, the floor, each peer's best, the ratio over FlexAttention and the one asked."""
    entries = []
    for case in gpu_cases.CASES:
        mine = [row for row in rows if row["case"] == case.name and row.get("peer") == "this library"]
        if not mine or "forward_ms" not in mine[0]:
            continue
        for number, name in enumerate(("forward", "backward")):
            best = {}
            for row in rows:
                if row["case"] == case.name and f"{name}_ms" in row and row["peer"] != "this library":
                    peer = row["peer"] + (" deterministic" if row["option"] is True else "")
                    best[peer] = min(best.get(peer, float("inf")), row[f"{name}_ms"])
            ms, floor = mine[0][f"{name}_ms"], floors(case)[number]
            asked = ASKED.get(case.name, (None, None))[number]
            ratio = best["flex"] / ms if "flex" in best else None
            met = asked is not None and ((ratio or 0) >= asked or ms <= 1.33 * floor)
            entry = dict(
                case=case.name, step=name, ms=ms, floor=floor, flex_ratio=ratio, asked=asked, met=met
            )
            entries.append(entry | dict(peers=best))
    return entries


def show(entries: list[dict]) -> None:
    columns = ("flex", "cudnn", "cudnn deterministic", "flash", "flash deterministic")
    print(
        f"{'case':19} {'':8} {'ms':>7} {'x floor':>7} "
        + " ".join(f"{c[:12]:>12}" for c in columns)
        + "  over flex  asked"
    )
    for entry in entries:
        peers = " ".join(f"{entry['peers'][c]:12.3f}" if c in entry["peers"] else f"{'':12}" for c in columns)
        asked = "" if entry["asked"] is None else f"{entry['asked']:6} {'met' if entry['met'] else ''}"
        line = f"{entry['case']:19} {entry['step']:8} {entry['ms']:7.3f} {entry['ms'] / entry['floor']:7.2f} {peers}"
        print(line + (f" {entry['flex_ratio']:10.2f}" if entry["flex_ratio"] else f"{'':11}") + asked)


def plot(entries: list[dict], file: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 1, figsize=(11, 8), sharex=True)
    for axis, step in zip(axes, ("forward", "backward"), strict=True):
        chosen = [entry for entry in entries if entry["step"] == step and entry["peers"]]
        series = {"this library": [e["ms"] for e in chosen], "floor": [e["floor"] for e in chosen]}
        for peer in ("flex", "cudnn", "flash"):
            series[peer] = [e["peers"].get(peer, float("nan")) for e in chosen]
        for number, (name, values) in enumerate(series.items()):
            axis.bar([i + 0.16 * number for i in range(len(chosen))], values, 0.15, label=name)
        axis.set_yscale("log")
        axis.set_ylabel(f"{step}, ms")
        axis.set_xticks([i + 0.32 for i in range(len(chosen))], [e["case"] for e in chosen], rotation=20)
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(file)


def run(script: str, *arguments: str, without: tuple[str, ...] = ()) -> list[dict]:
    """The JSON that one of the measuring scripts writes; what it prints goes through."""
    environment = {name: value for name, value in os.environ.items() if name not in without}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        subprocess.run(
            [sys.executable, str(HERE / script), *arguments, str(out)], env=environment, check=True
        )
        return json.loads(out.read_text())


def machine() -> str:
    """The card and the versions, as far as this environment shows them."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        parts = [subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]]
    except (OSError, subprocess.CalledProcessError):
        parts = []
    for package in ("tensorflow", "triton", "torch"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            parts.append(f"{package} {metadata.version(package)}")
    return ", ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default=str(HERE / "results" / "attention_gpu.json"))
    parser.add_argument("--plot", help="file for the picture")
    parser.add_argument(
        "--tune", action="store_true", help="time the tuning grid and write the table of tiles"
    )
    parser.add_argument("--capability", type=int, default=90, help="whose table --tune writes")
    parser.add_argument("--from", dest="files", nargs="+", default=[], help="measurements already made")
    parser.add_argument("--machine", default=machine(), help="where they were made")
    args = parser.parse_args()
    if args.tune:
        rows = [
            row for file in args.files for row in json.loads(Path(file).read_text())
        ] or gpu_tuning.measure(run)
        gpu_tuning.write(rows, tiles.FOLDER / f"sm_{args.capability}.json")
        return
    rows = [row for file in args.files for row in json.loads(Path(file).read_text())]
    if not rows:
        rows = run("attention_gpu_tensorflow.py")
        rows += run("attention_gpu_peers.py", without=("LD_LIBRARY_PATH", "PYTHONPATH"))
    entries = table(rows)
    show(entries)
    Path(args.out).write_text(json.dumps(dict(machine=args.machine, table=entries, rows=rows), indent=1))
    if args.plot:
        plot(entries, args.plot)


if __name__ == "__main__":
    main()
