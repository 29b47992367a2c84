"""Table 3: bits against the least context that every scored token sees."""

from __future__ import annotations

from pathlib import Path

from .results import Mean, read, table
from .scales import Scale
from .steps import Places

PAPER = {6144: 0.9952, 9216: 0.9936, 10_752: 0.9932, 11_904: 0.9930, 12_096: 0.9922, 12_160: 0.9908}


def section(places: Places) -> list[str]:
    lines = ["## Table 3: minimum context", ""]
    files = sorted(places.out.glob("context_*.json"))
    if not files:
        return [*lines, "Empty: no model of text has been scored at several contexts yet."]
    scale = places.scale
    scores = [_rows(path, scale) for path in files]
    lines += [*_about(scale, len(files)), ""]
    rows, before = [], None
    for context in scale.contexts:
        own = [each[context] for each in scores]
        rows.append([f"{context:,}", str(Mean(tuple(row["bits"] for row in own))), _less(own, before)])
        before = own
    lines += table(["minimum context", "bits per byte", "less than the row above by"], rows)
    paper = ", ".join(f"{bits:.4f} at {context:,}" for context, bits in PAPER.items())
    return [*lines, "", f"The paper's model of 12,288 positions on Enwik8: {paper}."]


def _rows(path: Path, scale: Scale) -> dict[int, dict]:
    """By minimum context. Raises ValueError where the file has not all that the scale wants."""
    rows = {row["min_context"]: row for row in read(path, "min_context", "bits")}
    if missing := [f"{context:,}" for context in scale.contexts if context not in rows]:
        raise ValueError(
            f"{path} has no minimum context of {', '.join(missing)}; delete it, and the same command goes on"
        )
    return rows


def _about(scale: Scale, models: int) -> list[str]:
    model = "the runs of `fixed`" if scale.scored is None else f"the committed model `{scale.scored}`"
    over = "seeds" if models > 1 else "stretches of text as long as a window"
    return [
        f"Of {model}, over the first {scale.context_tokens:,} bytes of the test split. All rows score the same bytes: "
        f"windows move by {scale.context_shift}, and a byte is scored from each place in a window that has so much "
        f"before it. +-: standard error over {over}."
    ]


def _less(own: list[dict], before: list[dict] | None) -> str:
    """Of several models the mean over them; of one what evaluate.py found over the text."""
    if before is None:
        return ""
    if len(own) == 1 and "less" in own[0]:
        return f"{own[0]['less']:.4f} +- {own[0]['less_error']:.4f}"
    return str(Mean(tuple(a["bits"] - b["bits"] for a, b in zip(before, own, strict=True))))
