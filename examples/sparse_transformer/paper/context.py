"""Table 3: bits against the least context that every scored token sees."""

from __future__ import annotations

from .results import Mean, read, table
from .steps import Places

PAPER = {6144: 0.9952, 9216: 0.9936, 10_752: 0.9932, 11_904: 0.9930, 12_096: 0.9922, 12_160: 0.9908}

CHUNKS = (
    "Rows differ in what they score, too: of its own chunk of l = 128 positions one sees what lies before it, so that "
    "the first of a chunk cost more. A minimum context that is a multiple of l scores whole chunks; any other scores "
    "more ends of chunks than starts, and comes out lower for that."
)


def section(places: Places) -> list[str]:
    lines = ["## Table 3: minimum context", ""]
    files = sorted(places.out.glob("context_*.json"))
    if not files:
        return [*lines, "Empty: no model of text has been scored at several contexts yet."]
    scores = [
        {row["min_context"]: row["bits"] for row in read(path, "min_context", "bits")} for path in files
    ]
    scored = places.scale.scored
    model = "the runs of `fixed`" if scored is None else f"the committed model `{scored}`"
    lines += [f"Of {model}, over the first {places.scale.context_tokens:,} bytes of the test split.", ""]
    rows, before = [], None
    for context in places.scale.contexts:
        own = Mean(tuple(each[context] for each in scores))
        less = "" if before is None else str(Mean(tuple(a - b for a, b in zip(before.values, own.values))))
        rows.append([f"{context:,}", str(own), less])
        before = own
    lines += table(["minimum context", "bits per byte", "less than the row above by"], rows)
    lines += ["", CHUNKS]
    paper = ", ".join(f"{bits:.4f} at {context:,}" for context, bits in PAPER.items())
    return [*lines, "", f"The paper's model of 12,288 positions on Enwik8: {paper}."]
