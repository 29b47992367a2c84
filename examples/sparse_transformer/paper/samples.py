"""Samples: text, images completed and from nothing, sound."""

from __future__ import annotations

from .figures import picture
from .steps import PROMPTS, Places


def section(places: Places) -> list[str]:
    shown = places.scale.shown
    lines = ["## Samples", "", "At temperature 1, as they came.", "", f"### Text, of `{shown['text']}`", ""]
    for number, prompt in enumerate(PROMPTS, 1):
        path = places.out / f"text{number}.txt"
        lines += _text(path.read_bytes()) if path.exists() else [f"After {prompt!r}: not drawn yet.", ""]
    lines += [f"### Images, of `{shown['images']}`", ""]
    lines += picture(
        places, "completed.png", "Above what was given, in the middle completed, below the original"
    )
    lines += picture(places, "images.png", "From nothing")
    lines += [f"### Sound, of `{shown['sound']}`", ""]
    seconds = places.scale.drawn["sound"] / 12_000
    if (places.out / "sound0.wav").exists():
        return [*lines, f"[{seconds:.1f} seconds of sound](sound0.wav)"]
    return [*lines, "Not drawn yet."]


FENCE = "~~~~~~~~"


def _text(tokens: bytes) -> list[str]:
    """A block of text. What is no character of UTF-8, or would end the block, is shown as a replacement."""
    text = tokens.decode(errors="replace").replace(FENCE, "~")
    text = "".join(each if each.isprintable() or each == "\n" else "\ufffd" for each in text)
    return [f"{FENCE}text", *text.split("\n"), FENCE, ""]
