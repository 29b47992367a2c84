"""This library's GPU attention beside its peers: the table and the JSON.

    python benchmarks/attention/gpu.py [--out benchmarks/results/attention_gpu.json]
    python benchmarks/attention/gpu.py --from A.json B.json ...      of measurements already made

The library runs through TensorFlow and the peers through PyTorch, each in a process of its own, on one card, one after
the other: medians of device time, the cache flushed before every run, each checked against float64 before it is timed.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.common import without_tensorflow  # noqa: F401  first

from benchmarks.common import cases, machine, processes  # isort: skip
from blocksparse.gpu import tuning  # isort: skip

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results"
BYTES_PER_MS = 3.0e9  # where a run has not timed its card's copy: an H100's, bytes read plus bytes written
FLOPS_PER_MS = 790e9  # an 8192-cube fp16 product on it
EXPONENTIALS_PER_MS = 132 * 16 * 1.755e6  # multiprocessors x exp2 a clock x kHz

# Ratios asked over FlexAttention: forward, backward.
ASKED = {
    "enwik8 fixed c32": (6, 5),
    "enwik8 fixed c8": (15, 14),
    "enwik8 fixed c32 of 128": (4.5, 4),
    "enwik8 fixed c8 of 128": (10, 8),
    "enwik8 local": (1.8, 1.6),
    "cifar local": (1.6, 2.2),
    "cifar strided": (3, 2),
    "imagenet64 local": (1.6, 1.5),
    "imagenet64 strided": (2, 2),
    "enwik8 all": (1.2, 1.2),
    "cifar all": (1.2, 1.2),
    "imagenet64 all": (1.2, 1.2),
}
# The dense peers of `all`; the backward pass here is deterministic, so is theirs.
DENSE = {"forward": ("cudnn", "fa4"), "backward": ("cudnn deterministic", "fa4 deterministic")}


def copied(rows: list[dict]) -> float:
    """Bytes read plus bytes written by a large copy on the card, in a millisecond, as the run timed it."""
    return next((row["bytes_per_ms"] for row in rows if "bytes_per_ms" in row), BYTES_PER_MS)


def floors(case: cases.Case, bytes_per_ms: float = BYTES_PER_MS) -> tuple[float, float]:
    """Milliseconds that no kernel of this method beats, forward and backward.

    The largest of bytes moved once, matrix products over every element of a visited tile (2 forward; 7 in the two
    backward passes, 5 where one will do), and exponentials (one an element and pass).
    """
    plan = plan_of(case)
    sides = [elements(case, side) for side in (plan.by_query, plan.by_key)]
    tensor = 2 * case.batch * case.time * case.heads * case.dim
    forward = max(
        4 * tensor / bytes_per_ms, sides[0] * 4 * case.dim / FLOPS_PER_MS, sides[0] / EXPONENTIALS_PER_MS
    )
    products = 5 * sides[0] if plan.closed else 3 * sides[0] + 4 * sides[1]
    scores = sides[0] if plan.closed else sum(sides)
    backward = max(
        8 * tensor / bytes_per_ms, products * 2 * case.dim / FLOPS_PER_MS, scores / EXPONENTIALS_PER_MS
    )
    return forward, backward


@functools.cache
def plan_of(case: cases.Case):
    made = cases.blocks(case)
    residues = case.residues != 1
    dims, work = (case.dim, case.dim), cases.work(made)
    choice = tuning.choose("float16", *dims, case.blocksize, work, 90, residues, work / case.time)
    return cases.plan(case, *choice, made)


def elements(case: cases.Case, side) -> int:
    """Score elements in the tiles that one side of the plan visits, over batch and heads."""
    distinct = len(side.head_tiles) - 1
    return case.batch * case.heads * len(side.columns) * side.row_tile * side.column_tile // distinct


def table(rows: list[dict]) -> list[dict]:
    """One entry a case and pass: ours, the floor, each peer's best, the ratio over FlexAttention and the one asked.

    dense_ratio, for `all`: over the faster of cuDNN and FlashAttention-4, both deterministic in the backward pass.
    """
    entries = []
    for case in cases.GPU:
        if case.name not in ASKED or not (mine := ours(rows, case.name)):
            continue
        for step, floor, asked in zip(
            ("forward", "backward"), floors(case, copied(rows)), ASKED[case.name], strict=True
        ):
            ms, peers = mine[f"{step}_ms"], best(rows, case.name, f"{step}_ms")
            ratio = peers["flex"] / ms if "flex" in peers else None
            dense = [peers[name] for name in DENSE[step] if name in peers]
            entry = dict(case=case.name, step=step, ms=ms, floor=floor, flex_ratio=ratio, asked=asked)
            entry |= dict(met=(ratio or 0) >= asked or ms <= 1.33 * floor, peers=peers)
            entries.append(
                entry | (dict(dense_ratio=min(dense) / ms) if dense and case.attn_mode == "all" else {})
            )
    return entries


def beside_flex(rows: list[dict]) -> list[dict]:
    """One entry a case and pass of documents and shared key heads: ours, FlexAttention's, and its times over ours."""
    entries = []
    for case in cases.GPU:
        if (case.documents is None and case.kv_heads is None) or not (mine := ours(rows, case.name)):
            continue
        for step in ("forward", "backward"):
            ms, flex = mine[f"{step}_ms"], best(rows, case.name, f"{step}_ms").get("flex")
            ratio = flex and flex / ms
            entries.append(dict(case=case.name, step=step, ms=ms, flex=flex, flex_ratio=ratio))
    return entries


def ours(rows: list[dict], case: str) -> dict | None:
    """The float16 row of this library."""
    for row in rows:
        if row["case"] == case and row["peer"] == "this library" and row.get("dtype", "float16") == "float16":
            return row if "forward_ms" in row else None
    return None


def best(rows: list[dict], case: str, step: str) -> dict[str, float]:
    """Each peer's least milliseconds, deterministic modes apart."""
    least = {}
    for row in rows:
        if row["case"] == case and step in row and row["peer"] != "this library":
            peer = row["peer"] + (" deterministic" if row["option"] is True else "")
            least[peer] = min(least.get(peer, float("inf")), row[step])
    return least


def growth(rows: list[dict]) -> list[dict]:
    """65,536 positions over 16,384: the ratio of times, and what is allowed: 1.15 times that of elements or bytes."""
    entries = []
    named = {case.name: case for case in cases.GPU}
    for kind in ("fixed", "local", "strided"):
        short, long = f"audio16k {kind}", f"audio {kind}"
        if not (ours(rows, short) and ours(rows, long)):
            continue
        plans = [plan_of(named[name]) for name in (short, long)]
        visited = [
            (elements(named[long], getattr(plans[1], side)), elements(named[short], getattr(plans[0], side)))
            for side in ("by_query", "by_key")
        ]
        most = 1.15 * max(
            named[long].time / named[short].time, sum(x for x, _ in visited) / sum(y for _, y in visited)
        )
        ratios = [ours(rows, long)[step] / ours(rows, short)[step] for step in ("forward_ms", "backward_ms")]
        entries.append(dict(case=long, forward=ratios[0], backward=ratios[1], allowed=most))
    return entries


def show(entries: list[dict], rows: list[dict]) -> None:
    columns = (
        "flex",
        "cudnn",
        "cudnn deterministic",
        "fa4",
        "fa4 deterministic",
        "flash",
        "flash deterministic",
    )
    heads = " ".join(f"{name.replace('deterministic', 'det.'):>10}" for name in columns)
    print(f"{'case':19} {'step':8} {'ms':>7} {'x floor':>7} {heads}  over flex  asked  over dense")
    for entry in entries:
        peers = " ".join(f"{entry['peers'][c]:10.3f}" if c in entry["peers"] else f"{'':10}" for c in columns)
        ratio = f"{entry['flex_ratio']:10.2f}" if entry["flex_ratio"] else f"{'':10}"
        dense = f"{entry['dense_ratio']:7.2f}" if "dense_ratio" in entry else ""
        print(
            f"{entry['case']:19} {entry['step']:8} {entry['ms']:7.3f} {entry['ms'] / entry['floor']:7.2f} {peers} "
            f"{ratio} {entry['asked']:5} {'met' if entry['met'] else '   '} {dense}"
        )
    for entry in beside_flex(rows):
        flex = f"{entry['flex']:10.3f} {entry['flex_ratio']:10.2f} times ours" if entry["flex"] else ""
        print(f"{entry['case']:36} {entry['step']:8} {entry['ms']:7.3f} {flex}")
    for entry in growth(rows):
        print(
            f"{entry['case']} over 16,384 positions: {entry['forward']:.1f} forward, {entry['backward']:.1f} backward, "
            f"at most {entry['allowed']:.1f}"
        )
    for row in rows:
        if "both_ms" in row:
            print(
                f"{row['case']}, {row['peer']}: {row['forward_ms']:.2f} ms forward, {row['both_ms']:.2f} both, "
                f"{row['peak_bytes'] / 1e9:.2f} GB"
            )
        elif row.get("dtype", "float16") != "float16" and "forward_ms" in row:
            print(
                f"{row['case']}, {row['dtype']}: {row['forward_ms']:.3f} forward, {row['backward_ms']:.3f} backward"
            )
        elif "microseconds" in row:
            print(f"host, one call in a graph: {row['microseconds']:.1f} us")
        elif "error" in row:
            print(f"{row['case']}, {row['peer']} {row.get('option', '')}: {row['error'][:100]}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "attention_gpu.json")
    parser.add_argument(
        "--from", dest="files", type=Path, nargs="+", default=[], help="measurements already made"
    )
    parser.add_argument("--machine", help="where they were made; this machine by default")
    args = parser.parse_args()
    rows = [row for file in args.files for row in json.loads(file.read_text())]
    if not rows:
        rows = processes.records(HERE / "through_tensorflow.py")
        rows += processes.records(HERE / "peers.py", without=processes.TENSORFLOWS)
    entries = table(rows)
    show(entries, rows)
    where = args.machine or machine.card_and_versions()
    results = dict(
        machine=where, table=entries, beside_flex=beside_flex(rows), growth=growth(rows), rows=rows
    )
    args.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
