"""The page: all sections, one after the other."""

from __future__ import annotations

import json

from ..files import replacing
from . import (
    collected,
    context,
    figures,
    html,
    lengths,
    memory,
    quality,
    runs_table,
    samples,
    speed,
    yardsticks,
)
from .steps import Places, Step

NOTES = "notes.md"


def text(places: Places, steps: list[Step]) -> str:
    """Markdown; pictures lie beside it."""
    scale = places.scale
    done = sum(step.makes.exists() for step in steps)
    lines = ["# Sparse Transformers, made again", ""]
    lines += [f"Scale `{scale.name}`: {scale.words}.", ""]
    lines += [
        "The paper: Child, Gray, Radford and Sutskever, *Generating Long Sequences with Sparse Transformers*, 2019."
    ]
    if done < len(steps):
        lines += ["", f"**Not complete: {done} of {len(steps)} steps are done; the same command goes on.**"]
    parts = [quality, speed, context, lengths, memory, yardsticks, samples, figures]
    sections = [*(part.section(places) for part in parts), _notes(places), runs_table.section(places, steps)]
    for section in filter(None, sections):
        lines += ["", *section]
    return "\n".join(lines) + "\n"


def _notes(places: Places) -> list[str]:
    """What whoever made the page has to say of it, in Markdown: which runs are of another day, say."""
    path = places.out / NOTES
    return ["## Notes", "", path.read_text(encoding="utf-8").strip()] if path.exists() else []


def write(places: Places, steps: list[Step]) -> None:
    """report.md, report.html and report.json in the scale's folder."""
    places.out.mkdir(parents=True, exist_ok=True)
    markdown = text(places, steps)
    files = {
        "report.md": markdown,
        "report.html": html.page(markdown, places.out),
        "report.json": json.dumps(collected.content(places), indent=1) + "\n",
    }
    for name, content in files.items():
        with replacing(places.out / name) as file:
            file.write(content.encode())
