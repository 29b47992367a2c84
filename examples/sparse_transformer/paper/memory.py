"""The table of OpenAI's post of 23 April 2019: memory of the attention of 64 layers of 4 heads."""

from __future__ import annotations

from .recorded import memory
from .results import table
from .steps import Places

LAYERS, HEADS, BYTES = 64, 4, 4
POST = {  # stored, recomputed
    1024: ("1,024 text tokens", "1.0 GB", "16 MB"),
    3072: ("32x32x3 image", "9.6 GB", "151 MB"),
    12_288: ("64x64x3 image", "154 GB", "2.4 GB"),
    24_000: ("24,000 samples", "590 GB", "9.2 GB"),
}


def section(places: Places) -> list[str]:
    lines = ["## Memory of attention", ""]
    lines += [
        f"{LAYERS} layers, {HEADS} heads, float32. *Stored*: 4 n² bytes a head and layer. *Recomputed*: one layer. "
        "*Fused*, as here: 4 n, a logarithm for each row. *Measured*: the peak of a whole forward and backward pass of "
        "dense attention on one H200, activations included (benchmarks/results/model_memory.jsonl).",
        "",
    ]
    measured = memory()
    rows = []
    for n, (name, *post) in POST.items():
        one = n * n * HEADS * BYTES
        computed = one * LAYERS, one, n * HEADS * LAYERS * BYTES
        peaks = [_measured(measured, n, way) for way in ("stored", "recomputed", "fused")]
        row = [f"{said} / {human(size)} / {peak}" for said, size, peak in zip([*post, ""], computed, peaks)]
        rows.append([name, *row[:2], row[2].removeprefix(" / ")])
    head = [
        "input",
        "stored: post / computed / measured",
        "recomputed: the same",
        "fused: computed / measured",
    ]
    return [*lines, *table(head, rows)]


def _measured(found: dict, n: int, way: str) -> str:
    if (n, way) not in found:
        return "not measured"
    peak = found[n, way]
    return "does not fit" if peak is None else human(peak)


def human(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
