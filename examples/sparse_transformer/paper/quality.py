"""Table 2's quality: bits a byte of dense, fixed and strided, and whether their order is the paper's."""

from __future__ import annotations

from itertools import pairwise

from .. import runs
from .results import Mean, bits, committed, settings, table, trained
from .scales import PATTERNS
from .steps import Places

PAPER = {
    "text": {"dense": 1.00, "fixed": 0.99, "strided": 1.13},  # Enwik8
    "images": {"dense": 2.82, "fixed": 2.85, "strided": 2.80},  # CIFAR-10
}
ORDERS = {"text": ("fixed", "dense", "strided"), "images": ("strided", "dense", "fixed")}  # best first


def section(places: Places) -> list[str]:
    lines = ["## Table 2: quality", ""]
    lines += [
        "Bits per byte of the test split, with averaged weights; +- is the mean's standard error over seeds."
    ]
    for kind, rows in PAPER.items():
        results = {pattern: mean_of(places, kind, pattern) for pattern in PATTERNS}
        lines += ["", f"### {kind.capitalize()}", "", *_about(places, kind)]
        lines += table(
            ["pattern", "bits per byte", "seeds", "paper"],
            [
                [
                    pattern,
                    str(found or "not trained yet"),
                    _seeds(places, kind, pattern),
                    f"{rows[pattern]:.2f}",
                ]
                for pattern, found in results.items()
            ]
            + _committed(places, kind),
        )
        lines += ["", *_verdict(kind, results)]
    return lines


def _committed(places: Places, kind: str) -> list[list]:
    """A row for the committed model, where there is one: trained for longer, it is no part of the comparison."""
    if (found := committed(places, kind)) is None:
        return []
    name, card = found
    pattern = ", ".join(map(str, settings(runs.PRETRAINED / name).layer_modes))
    return [[f"{pattern}: `{name}`, {card['steps']:,} steps", f"{card['test']['bits']:.4f}", 1, ""]]


def _seeds(places: Places, kind: str, pattern: str) -> str:
    folders = [each.folder(places.out) for each in places.scale.of_kind(kind) if each.pattern == pattern]
    return f"{len(trained(folders))} of {len(folders)}"


def mean_of(places: Places, kind: str, pattern: str) -> Mean | None:
    folders = [each.folder(places.out) for each in places.scale.of_kind(kind) if each.pattern == pattern]
    values = tuple(bits(folder) for folder in trained(folders))
    return Mean(values) if values else None


def _about(places: Places, kind: str) -> list[str]:
    """What was trained here: of the runs themselves, as they may have been made shorter."""
    found = trained(each.folder(places.out) for each in places.scale.of_kind(kind))
    kinds = sorted({_training(folder) for folder in found})
    data = {"text": "Enwik8", "images": "CIFAR-10"}[kind]
    here = places.scale.data[kind]
    lines = [f"Data here: `{here}`; the paper's: {data}."] if places.scale.name != "full" else []
    return [*lines, *(f"{each}." for each in kinds), ""]


def _training(folder) -> str:
    own = settings(folder)
    return f"`{own.name}`: {own.steps:,} steps of {own.batch} windows of {own.n_ctx:,}"


def _verdict(kind: str, results: dict[str, Mean | None]) -> list[str]:
    found = {pattern: each for pattern, each in results.items() if each}
    if len(found) < len(results):
        return ["The order is not known yet."]
    here = sorted(found, key=lambda pattern: found[pattern].value)
    paper = list(ORDERS[kind])
    same = "the paper's too" if here == paper else f"the paper's is {', '.join(paper)}"
    gaps = [
        f"{worse} less {better} {_gap(found[worse], found[better])} "
        f"(paper {PAPER[kind][worse] - PAPER[kind][better]:.2f})"
        for better, worse in pairwise(paper)
    ]
    single = any(each.error is None for each in found.values())
    note = ", of one seed, so that their errors are not known" if single else ""
    return [f"Best first: {', '.join(here)}; {same}. Gaps{note}: {'; '.join(gaps)}."]


def _gap(worse: Mean, better: Mean) -> str:
    gap = f"{worse.value - better.value:.4f}"
    if worse.error is None or better.error is None:
        return gap
    return f"{gap} +- {(worse.error**2 + better.error**2) ** 0.5:.4f}"
