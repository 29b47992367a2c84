"""Which trainings make Table 2 at a scale, and the page of what they gave."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, stdev

from . import metrics

PAPER = {  # bits per byte, seconds a step: Table 2
    "text": {"dense": (1.00, 1.31), "fixed": (0.99, 0.55), "strided": (1.13, 0.35)},
    "images": {"dense": (2.82, 0.54), "fixed": (2.85, 0.47), "strided": (2.80, 0.38)},
}
ORDERS = {"text": ("fixed", "dense", "strided"), "images": ("strided", "dense", "fixed")}  # best first
DATA = {"text": "gcide/gcide.dict.dz", "images": "fashion"}  # below --data


@dataclass(frozen=True)
class Training:
    """One row of the table with one seed: the arguments of train.py, and where its results go."""

    kind: str  # of PAPER
    pattern: str
    seed: int
    config: str
    overrides: tuple[str, ...] = ()

    def folder(self, out: Path) -> Path:
        return out / self.kind / f"{self.pattern}_{self.seed}"


_SMALL = {
    "text": ("enwik8_small", "steps=300"),
    "images": (
        "fashion", "layers=2", "width=64", "heads=2", "num_verts=2", "vertsize=1", "dropout=0", "batch=8", "steps=300",
        "warmup=50", "average=0.99", "precision='float32'", "xla=False", "checkpoint_every=100",
    ),
}  # fmt: skip
_MODES = {
    "text": {"dense": "('all',)", "fixed": "('fixed',)", "strided": "('local+strided',)"},
    "images": {"dense": "('all',)", "fixed": "('fixed',)", "strided": "('strided', 'local')"},
}


def _small(kind: str, pattern: str) -> Training:
    config, *overrides = _SMALL[kind]
    overrides.append(f"layer_modes={_MODES[kind][pattern]}")
    if (kind, pattern) == ("images", "fixed"):
        overrides.append("local_attn_ctx=112")
    return Training(kind, pattern, 1, config, tuple(overrides))


def trainings(scale: str) -> list[Training]:
    """laptop: one seed of small models, half an hour on two cores. card: `gcide` and `fashion`, three seeds."""
    if scale == "laptop":
        return [_small(kind, pattern) for kind in PAPER for pattern in PAPER[kind]]
    names = {
        ("text", "fixed"): "gcide",
        ("text", "dense"): "gcide_dense",
        ("text", "strided"): "gcide_strided",
        ("images", "strided"): "fashion",
        ("images", "dense"): "fashion_dense",
        ("images", "fixed"): "fashion_fixed",
    }
    return [Training(*row, seed, name) for seed in (1, 2, 3) for row, name in names.items()]


def seconds(folder: Path) -> float:
    """The median of a run's steps, without those that compile."""
    rows = metrics.read_rows(folder / metrics.NAME)[3:]
    return median(float(row[3]) for row in rows)


def page(out: Path, wanted: list[Training]) -> str:
    """Markdown: the table of what is there, and whether the order is the paper's."""
    lines = ["# Table 2, on data that every machine can have", ""]
    for kind, rows in PAPER.items():
        lines += [f"## {kind.capitalize()}: {DATA[kind]}", ""]
        lines += ["| pattern | bits per byte, test | seeds | paper | s a step | dense over it | paper |"]
        lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
        results = {pattern: _results(out, wanted, kind, pattern) for pattern in rows}
        for pattern, (bits, paper_step) in rows.items():
            lines.append(_line(pattern, results, bits, rows["dense"][1] / paper_step))
        lines += ["", _verdict(kind, results), ""]
    return "\n".join(lines)


def _results(out: Path, wanted: list[Training], kind: str, pattern: str) -> list[tuple[float, float]]:
    """(bits, seconds a step) of the seeds that are there."""
    found = []
    for training in wanted:
        path = training.folder(out) / "score.json"
        if (training.kind, training.pattern) == (kind, pattern) and path.exists():
            found.append((json.loads(path.read_text())["bits"], seconds(path.parent)))
    return found


def error(values: list[float]) -> float | None:
    """The mean's standard error; a single value says nothing of how others differ."""
    return stdev(values) / len(values) ** 0.5 if len(values) > 1 else None


def _line(pattern: str, results: dict, paper_bits: float, paper_ratio: float) -> str:
    if not results[pattern]:
        return f"| {pattern} | not trained yet | 0 | {paper_bits:.2f} | | | {paper_ratio:.2f} |"
    bits, steps = zip(*results[pattern], strict=True)
    spread = "" if error(bits) is None else f" +- {error(bits):.4f}"
    dense = mean(step for _, step in results["dense"]) if results["dense"] else None
    ratio = f"{dense / mean(steps):.2f}" if dense else ""
    return (
        f"| {pattern} | {mean(bits):.4f}{spread} | {len(bits)} | {paper_bits:.2f} | {mean(steps):.3f} | {ratio} | "
        f"{paper_ratio:.2f} |"
    )


def _verdict(kind: str, results: dict) -> str:
    means = {pattern: mean(bits for bits, _ in found) for pattern, found in results.items() if found}
    if len(means) < len(results):
        return "The order is not known yet."
    here, paper = sorted(means, key=means.__getitem__), list(ORDERS[kind])
    same = "the paper's too" if here == paper else f"the paper's is {', '.join(paper)}"
    return f"Best first: {', '.join(here)}; {same}."
