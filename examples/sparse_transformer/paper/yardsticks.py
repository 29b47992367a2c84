"""What general compressors need for the same held-out data (../compressors.py), beside the best model here."""

from __future__ import annotations

from . import quality
from .results import committed, read, table
from .scales import PATTERNS
from .steps import Places

NAMES = {"text": "text, given what the models learnt from", "images": "images of the test split"}


def section(places: Places) -> list[str]:
    lines = ["## Yardsticks", "", "Bits per byte of the same held-out data."]
    for kind, words in NAMES.items():
        found = read(places.out / f"yardsticks_{kind}.json", "name", "bits", "note")
        lines += ["", f"### {words.capitalize()}", ""]
        if found is None:
            lines += ["Empty: the compressors have not run yet."]
            continue
        rows = [[row["name"], f"{row['bits']:.3f}", row["note"]] for row in found]
        best = [each for pattern in PATTERNS if (each := quality.mean_of(places, kind, pattern))]
        if best:
            rows.append(["the best model here", f"{min(each.value for each in best):.3f}", "Table 2 above"])
        if (model := committed(places, kind)) is not None:
            name, card = model
            whole = f"{card['test']['windows']:,} of {card['test']['of']:,} windows"
            rows.append([f"the committed model `{name}`", f"{card['test']['bits']:.3f}", whole])
        lines += table(["", "bits per byte", ""], rows)
    return lines
