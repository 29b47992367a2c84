"""Figures 2 and 3, and the curves of all runs."""

from __future__ import annotations

from .steps import Places


def section(places: Places) -> list[str]:
    lines = ["## Figure 2: what is attended to", ""]
    for number, name in enumerate(places.scale.looked_at, 1):
        model = f"the run `{name}`" if "/" in name else f"the committed model `{name}`"
        lines += picture(
            places, f"figure2_{number}_heads.png", f"Single heads of layers of {model}, for one position"
        )
        lines += picture(places, f"figure2_{number}_mean.png", f"The same, mean over 16 images, of {model}")
    lines += ["## Figure 3: the patterns", ""]
    lines += picture(places, "figure3.png", "Which positions two heads read, and the matrices of connections")
    lines += ["## Curves of all runs", ""]
    for kind in places.scale.data:
        lines += picture(places, f"curves_{kind}.png", f"Bits per byte over steps: {kind}")
    return lines[:-1]


def picture(places: Places, name: str, words: str) -> list[str]:
    """The picture with its caption, or that it is not there."""
    if not (places.out / name).exists():
        return [f"{words}: not drawn yet.", ""]
    return [f"{words}.", "", f"![{words}]({name})", ""]
