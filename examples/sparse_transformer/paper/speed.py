"""Table 2's speed: seconds a step of the same runs, dense over sparse, beside the paper's ratios."""

from __future__ import annotations

from statistics import mean

from .recorded import steps as recorded_steps
from .results import ALONE, seconds, settings, table, trained
from .scales import PATTERNS
from .steps import Places

PAPER = {
    "text": {"dense": 1.31, "fixed": 0.55, "strided": 0.35},
    "images": {"dense": 0.54, "fixed": 0.47, "strided": 0.38},
}
FULL = {  # the configurations behind those numbers
    "text": {"dense": "enwik8_dense", "fixed": "enwik8", "strided": "enwik8_strided"},
    "images": {"dense": "cifar10_dense", "fixed": "cifar10_fixed", "strided": "cifar10"},
}


def section(places: Places) -> list[str]:
    lines = ["## Table 2: speed", ""]
    lines += [
        "Of the same runs; dense is the fused attention with the pattern `all`, no stored matrices as in 2019."
    ]
    lines += ["Attention is a smaller part of a step the shorter the context: the ratios grow with it.", ""]
    rows, shared = [], False
    for kind, paper in PAPER.items():
        found = {pattern: _seconds(places, kind, pattern) for pattern in PATTERNS}
        shared |= any(each.exists() for each in places.out.glob(f"{kind}/*/{ALONE}"))
        rows += [_row(places, kind, pattern, found, paper) for pattern in PATTERNS]
    lines += table(["data", "pattern", "positions", "s a step", "dense over it", "paper"], rows)
    if shared:
        lines += [
            "",
            "Several trainings shared the device; these steps are ones that a training had it for itself.",
        ]
    return [*lines, "", *_full()]


def _seconds(places: Places, kind: str, pattern: str) -> float | None:
    of_kind = {each.folder(places.out): each.pattern for each in places.scale.of_kind(kind)}
    folders = trained(of_kind)
    # Where one had the device for itself for some steps they all shared it, and the others' steps say nothing.
    alone = [folder for folder in folders if (folder / ALONE).exists()]
    times = [seconds(folder) for folder in alone or folders if of_kind[folder] == pattern]
    known = [time for time in times if time is not None]
    return mean(known) if known else None


def _row(places: Places, kind: str, pattern: str, found: dict, paper: dict) -> list[str]:
    ratio = f"{paper['dense'] / paper[pattern]:.2f}"
    folders = [each.folder(places.out) for each in places.scale.of_kind(kind) if each.pattern == pattern]
    if found[pattern] is None:
        return [kind, pattern, "", "not timed alone" if trained(folders) else "not trained yet", "", ratio]
    positions = settings(trained(folders)[0]).n_ctx
    own = f"{found['dense'] / found[pattern]:.2f}" if found["dense"] else ""
    return [kind, pattern, f"{positions:,}", f"{found[pattern]:.4f}", own, ratio]


def _full() -> list[str]:
    """The paper's own configurations, timed once; a sequence's time, as their batches differ."""
    rows = []
    found = recorded_steps()
    for kind, names in FULL.items():
        here = {pattern: found[name] for pattern, name in names.items() if name in found}
        for pattern, row in here.items():
            ratio = ""
            if "dense" in here:
                dense = here["dense"]["seconds"] / here["dense"]["batch"]
                ratio = f"{dense * row['batch'] / row['seconds']:.2f}"
            paper = f"{PAPER[kind]['dense'] / PAPER[kind][pattern]:.2f}"
            size = [row["config"], f"{row['positions']:,}", row["batch"], row["device"]]
            rows.append([*size, f"{row['seconds']:.3f}", ratio, paper])
    if not rows:
        return ["Empty: benchmarks/results/model_step.json holds no step of the paper's own configurations."]
    head = ["configuration", "positions", "batch", "device", "s a step", "dense over it, a sequence", "paper"]
    return [
        "A step of the paper's own configurations, timed by `benchmarks/model/step.py`, not trained:",
        "",
        *table(head, rows),
    ]
