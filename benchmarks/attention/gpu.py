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
from blocksparse.plan import scatter  # isort: skip

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results"
BYTES_PER_MS = 3.0e9  # where a run has not timed its card's copy: an H100's, bytes read plus bytes written
FLOPS_PER_MS = 790e9  # an 8192-cube fp16 product on it
EXPONENTIALS_PER_MS = 132 * 16 * 1.755e6  # multiprocessors x exp2 a clock x kHz

# Times as fast as a peer that are asked for, forward and backward. BEST: the fastest of all; RATE: of visible work.
BEST, PASSES, RATE = "best", "its passes", "TFLOP/s"
ASKED = {
    "enwik8 fixed c32": ("flex", 4.5, 4),
    "enwik8 fixed c8": ("flex", 10, 8),
    "enwik8 fixed c32 of 128": ("flex", 4.5, 4),
    "enwik8 fixed c8 of 128": ("flex", 10, 8),
    "enwik8 local": (BEST, 1.25, 1.25),
    "cifar local": (BEST, 1.25, 1.25),
    "imagenet64 local": (BEST, 1.25, 1.25),
    "enwik8 strided": ("flex", 1.3, 1.6),
    "cifar strided": ("flex", 1.3, 1.6),
    "imagenet64 strided": ("flex", 1.3, 1.6),
    "enwik8 local+strided": (PASSES, 1 / 1.15, 1 / 1.15),
    "enwik8 all": (BEST, 1, 1),
    "cifar all": (BEST, 1, 1),
    "imagenet64 all": ("fa4", 0.9, 1),
    "blocks of 64": (RATE, 500, 360),
}
KNOWN = {case.name: case for case in cases.GPU}
DETERMINISTIC = " deterministic"
PRODUCTS = {"forward": 2, "backward": 5}  # of visible elements


def copied(rows: list[dict]) -> float:
    """Bytes read plus bytes written by a large copy on the card, in a millisecond, as the run timed it."""
    return next((row["bytes_per_ms"] for row in rows if "bytes_per_ms" in row), BYTES_PER_MS)


def floors(case: cases.Case, bytes_per_ms: float = BYTES_PER_MS) -> tuple[float, float]:
    """Milliseconds that no kernel of this method beats, forward and backward.

    The largest of bytes moved once, matrix products over every element of a visited tile (2 forward; 7 in the two
    backward passes, 5 where one will do), and exponentials (one an element and pass).
    """
    if len(apart(case)) > 1:
        parts = [floors(one, bytes_per_ms) for one in apart(case)]
        return sum(forward for forward, _ in parts), sum(backward for _, backward in parts)
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


def apart(case: cases.Case) -> list[cases.Case]:
    """The passes of a merged case, as cases; else the case itself."""
    return [cases.replace(case, attn_mode=mode) for mode in case.attn_mode.split("+")]


@functools.cache
def plan_of(case: cases.Case):
    made = cases.blocks(case)
    dims, work = (case.dim, case.dim), cases.work(made)
    kind = case.blocksize, work, 90, case.residues != 1, work / case.time, scatter(made)
    return cases.plan(case, *tuning.choose("float16", *dims, *kind), made)


def elements(case: cases.Case, side) -> int:
    """Score elements in the tiles that one side of the plan visits, over batch and heads."""
    distinct = len(side.head_tiles) - 1
    return case.batch * case.heads * len(side.columns) * side.row_tile * side.column_tile // distinct


def table(rows: list[dict]) -> list[dict]:
    """One entry a case and pass: ours, the floor, TFLOP/s of visible work, each peer's best, the ratio over
    FlexAttention, and over what it is asked of.

    best_ratio: over the fastest peer; in a backward pass over the fastest deterministic one where there is one, as ours
    is deterministic.
    """
    entries = []
    for name, (over, *wanted) in ASKED.items():
        case, mine = KNOWN[name], ours(rows, name)
        if mine is None:
            continue
        pairs = cases.work(cases.blocks(case)) * case.time * case.heads * case.batch
        for step, floor, asked in zip(PRODUCTS, floors(case, copied(rows)), wanted, strict=True):
            ms, peers = mine[f"{step}_ms"], best(rows, case.name, f"{step}_ms")
            rate = PRODUCTS[step] * 2 * case.dim * pairs / ms / 1e9
            entry = dict(case=case.name, step=step, ms=ms, floor=floor, tflops=rate, peers=peers)
            entry |= dict(flex_ratio=peers["flex"] / ms if "flex" in peers else None)
            ratios = {peer: other / ms for peer, other in alike(peers, step).items()}
            entry |= dict(best_ratio=min(ratios.values(), default=None))
            ratios |= {RATE: rate, BEST: entry["best_ratio"], PASSES: passes(rows, case, step) / ms}
            reached = ratios.get(over) or 0
            entries.append(entry | dict(over=over, reached=reached, asked=asked, met=reached >= asked))
    return entries


def alike(peers: dict[str, float], step: str) -> dict[str, float]:
    """Of a forward pass all peers; of a backward pass the deterministic ones, by their own names, if there are any."""
    same = {
        peer.removesuffix(DETERMINISTIC): ms for peer, ms in peers.items() if peer.endswith(DETERMINISTIC)
    }
    if step == "backward" and same:
        return same
    return {peer: ms for peer, ms in peers.items() if not peer.endswith(DETERMINISTIC)}


def passes(rows: list[dict], case: cases.Case, step: str) -> float:
    """Milliseconds of the passes that a merged case consists of, each alone; 0 where they were not timed."""
    names = [
        known.name
        for one in apart(case)
        for known in cases.GPU
        if known == cases.replace(one, name=known.name)
    ]
    alone = [ours(rows, name) for name in names]
    return sum(row[f"{step}_ms"] for row in alone) if all(alone) else 0.0


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
    for kind in ("fixed", "local", "strided"):
        short, long = f"audio16k {kind}", f"audio {kind}"
        if not (ours(rows, short) and ours(rows, long)):
            continue
        plans = [plan_of(KNOWN[name]) for name in (short, long)]
        visited = [
            (elements(KNOWN[long], getattr(plans[1], side)), elements(KNOWN[short], getattr(plans[0], side)))
            for side in ("by_query", "by_key")
        ]
        most = 1.15 * max(
            KNOWN[long].time / KNOWN[short].time, sum(x for x, _ in visited) / sum(y for _, y in visited)
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
    print(f"{'case':23} {'step':8} {'ms':>7} {'x floor':>7} {heads}  over flex  over best  reached  asked")
    for entry in entries:
        peers = " ".join(f"{entry['peers'][c]:10.3f}" if c in entry["peers"] else f"{'':10}" for c in columns)
        flex, top, reached = (
            f"{entry[name]:10.2f}" if entry[name] else f"{'':10}"
            for name in ("flex_ratio", "best_ratio", "reached")
        )
        print(
            f"{entry['case']:23} {entry['step']:8} {entry['ms']:7.3f} {entry['ms'] / entry['floor']:7.2f} {peers} "
            f"{flex} {top} {reached} {entry['asked']:6.2f} {entry['over']:10} {'met' if entry['met'] else ''}"
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
