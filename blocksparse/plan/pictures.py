"""Which keys each query sees, drawn: the paper's Figure 3, and every mode that `attn_mode` names.

Needs matplotlib, which nothing else in this package imports.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .modes import Mode, head_modes

# What a cell of a picture says, and its colour: Figure 3's blues.
UNSEEN, EVERY_HEAD, FIRST, SECOND, QUERY, FUTURE = range(6)
COLOURS = ("#d8d8d8", "#a0bee9", "#769edc", "#d9e7fb", "#437bdb", "#ffffff")

# Figure 3's heads, by the modes they have here.
FIGURE_3 = {
    "(a) Transformer": ("all",),
    "(b) Sparse Transformer (strided)": ("local", "strided"),
    "(c) Sparse Transformer (fixed)": ("chunk", "summary"),
}
MODES = {  # with l for local_attn_ctx: when query i sees key j, j <= i but in a prefix
    "all": "always",
    "local": "i - j < l",
    "strided": "(i - j) % l == 0",
    "chunk": "i // l == j // l",
    "previous": "i // l == j // l + 1",
    "summary": "j in the head's columns of its chunk",
    "fixed": "chunk or summary",
    "prefix": "j < l, or j <= i: the prefix both ways",
    "local+strided": "local or strided, in every head",
    ("local", "strided"): "one mode a head, in turn",
}
_LEGEND = {
    EVERY_HEAD: "both heads see it",
    FIRST: "head 0 alone sees it",
    SECOND: "head 1 alone sees it",
    UNSEEN: "no head sees it",
    FUTURE: "the future, not seen",
}
_FIGURE_3_LEGEND = {
    QUERY: "the query's own position",
    EVERY_HEAD: "read by every head",
    FIRST: "by the first head",
    SECOND: "by the second alone",
    UNSEEN: "by none",
}
# Darker than Figure 3's: here both heads together are the strongest.
_PANEL_COLOURS = {
    EVERY_HEAD: "#2a5db0",
    FIRST: "#f0a202",
    SECOND: "#7fc8a9",
    UNSEEN: "#e4e4e4",
    FUTURE: "#ffffff",
}


def figure_3() -> Any:
    """The paper's Figure 3: above, what the heads read for one pixel of a 6 x 6 image; below, 16 outputs by 16 inputs.

    Returns a matplotlib Figure. Raises ImportError without matplotlib.
    """
    figure = _figure(10, 6)
    grid = figure.add_gridspec(2, 6, height_ratios=(1, 2))
    for column, (title, modes) in zip((0, 2, 4), FIGURE_3.items()):
        both = slice(column, column + 2)
        tops = [both] if len(modes) == 1 else [column, column + 1]
        for head, place in enumerate(tops):
            pixels = cells(modes, 36, 6, head)[27]  # the query at row 4, column 3
            _paint(figure.add_subplot(grid[0, place]), pixels.reshape(6, 6), COLOURS)
        below = figure.add_subplot(grid[1, both])
        _paint(below, cells(modes, 16, 4), COLOURS)
        below.set_xlabel(title)
    _legend(figure, _FIGURE_3_LEGEND, COLOURS)
    figure.suptitle(
        "Which keys a query reads. Above: for one pixel of a 6 x 6 image, a square a head.\n"
        "Below: 16 queries (rows) by 16 keys (columns), both heads in one",
        fontsize=11,
    )
    return figure


def cells(modes: Sequence[str], n: int, length: int, only: int | None = None) -> np.ndarray:
    """[n, n] cells of Figure 3 for heads of these modes, or for one of them; a key both see is the first one's.

    The summary of a chunk is its last column (c = 1 in the paper).
    """
    picture = np.full((n, n), UNSEEN)
    for head, mode in reversed([*enumerate(modes)]):
        if only in (None, head):
            (one,) = head_modes(mode, 1, length, blocksize=1, num_verts=1, vertsize=1)
            picture[_seen(one, n)] = EVERY_HEAD if len(modes) == 1 else (FIRST, SECOND)[head]
    np.fill_diagonal(picture, QUERY)
    return picture


def every_mode(n: int = 24, length: int = 6) -> Any:
    """One panel for each of MODES: n queries by n keys, two heads, local_attn_ctx = length, one column a group.

    Returns a matplotlib Figure. Raises ImportError without matplotlib.
    """
    figure = _figure(16.5, 9)
    figure.get_layout_engine().set(h_pad=0.15)
    panels = figure.subplots(2, 5)
    colours = [_PANEL_COLOURS.get(cell, "#000000") for cell in range(6)]
    for axes, (mode, rule) in zip(panels.flat, MODES.items()):
        _paint(axes, two_heads(mode, n, length), colours)
        name = (
            f'"{mode}"' if isinstance(mode, str) else "({})".format(", ".join(f'"{part}"' for part in mode))
        )
        axes.set_title(name, fontsize=13, family="monospace", pad=22)
        axes.text(0.5, 1.02, rule, transform=axes.transAxes, ha="center", va="bottom", fontsize=10)
        labels = [*range(0, n, length), n - 1]
        middles = [position + 0.5 for position in labels]
        axes.set_xticks(middles, labels)
        axes.set_yticks(middles, labels)
        axes.set(xlabel="key j", ylabel="query i")
    _legend(figure, _LEGEND, colours)
    sizes = f"{n} positions, two heads, local_attn_ctx = l = {length}"
    figure.suptitle(
        f"Which keys each query sees, for every attn_mode\n{sizes}; summaries of one column a head",
        fontsize=14,
    )
    return figure


def two_heads(mode: str | Sequence[str], n: int, length: int) -> np.ndarray:
    """[n, n] cells of one mode in two heads, whose summaries are the last column of a chunk and the one before."""
    modes = head_modes(mode, 2, length, blocksize=1, num_verts=2, vertsize=1)
    first, second = (_seen(modes[head % len(modes)], n) for head in (0, 1))
    future = np.triu(np.ones((n, n), bool), 1)
    chosen = [first & second, first, second, future]
    return np.select(chosen, [EVERY_HEAD, FIRST, SECOND, FUTURE], UNSEEN)


def _seen(mode: Mode, n: int) -> np.ndarray:
    return mode.pattern().sees(np.arange(n)[:, None], np.arange(n))


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)  # draws without a screen, whatever backend the program has chosen
    return figure


def _legend(figure: Any, texts: dict[int, str], colours: Sequence[str]) -> None:
    """Below the figure: what each cell of `texts` says."""
    from matplotlib.patches import Patch

    handles = [
        Patch(facecolor=colours[cell], edgecolor="#808080", label=text) for cell, text in texts.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=11)


def _paint(axes: Any, picture: np.ndarray, colours: Sequence[str]) -> None:
    table = np.array([[int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)] for colour in colours])
    axes.pcolormesh(table[picture], edgecolors="#808080", linewidth=0.4)
    axes.set(aspect="equal", xticks=[], yticks=[], ylim=(len(picture), 0))
