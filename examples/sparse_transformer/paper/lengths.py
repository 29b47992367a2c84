"""Table 4: how long sounds can be: time and memory of a step, and bits of those that were trained."""

from __future__ import annotations

from .recorded import steps as recorded_steps
from .results import bits, device, seconds, settings, table, trained
from .steps import Places

PAPER = {65_536: ("152M", 1.97), 262_144: ("25M", 2.17), 1_048_576: ("3M", 2.99)}


def section(places: Places) -> list[str]:
    source = places.scale.data["sound"]
    data = f"recordings in `{source}`" if source else "melodies that the project makes by rule, no recordings"
    lines = ["## Table 4: long sounds", ""]
    lines += [f"Strided attention; sound of 12,000 samples a second in 256 levels; data: {data}.", ""]
    folders = trained(each.folder(places.out) for each in places.scale.of_kind("sound"))
    rows = [_row(folder) for folder in folders]
    head = [
        "length",
        "parameters",
        "steps x windows",
        "bits per byte",
        "s a step",
        "peak memory, GB",
        "paper",
    ]
    lines += table(head, rows) if rows else ["Empty: no model of sound has been trained yet."]
    lengths = {settings(folder).n_ctx for folder in folders}
    if missing := [f"{n:,}" for n in PAPER if n not in lengths]:
        lines += ["", f"Not trained at this scale: {', '.join(missing)}."]
    return [*lines, "", *_full()]


def _row(folder) -> list[str]:
    own, where = settings(folder), device(folder)
    count = f"{where['parameters'] / 1e6:.2f}M" if where else ""
    peak = f"{where['peak_bytes'] / 1e9:.1f}" if where else ""
    parameters, paper = PAPER.get(own.n_ctx, ("", None))
    beside = f"{paper:.2f}, {parameters}" if paper else ""
    time = seconds(folder)
    return [
        f"{own.n_ctx:,}",
        count,
        f"{own.steps:,} x {own.batch}",
        f"{bits(folder):.2f}",
        "" if time is None else f"{time:.2f}",
        peak,
        beside,
    ]


def _full() -> list[str]:
    of = recorded_steps()
    names = [f"music_{n}" for n in PAPER if f"music_{n}" in of]
    if not names:
        return []
    rows = [
        [
            f"{of[name]['positions']:,}",
            of[name]["device"],
            f"{of[name]['parameters'] / 1e6:.1f}M",
            f"{of[name]['seconds']:.2f}",
            f"{of[name]['peak_gb']:.1f}",
        ]
        for name in names
    ]
    lines = ["The paper's sizes, one window a step, timed by `benchmarks/model/step.py`, not trained:"]
    return [*lines, "", *table(["length", "device", "parameters", "s a step", "peak memory, GB"], rows)]
