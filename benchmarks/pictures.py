"""Draws the pictures in results/ from the committed numbers beside them. Measures nothing.

python benchmarks/pictures.py [--out FOLDER]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.common import cases

RESULTS = Path(__file__).resolve().parent / "results"
STEPS = ("forward", "backward")
HERE, DENSE, FLEX, CUDNN, FLASH = "#2a5db0", "#9a9a9a", "#f0a202", "#76b900", "#c0504d"
WAYS = {"mirrored": "one process", "workers": "a process each"}
WIDTH = 0.22  # of a bar, where 1 is a group
LINES = {"dense": DENSE, "all": DENSE, "fixed": "#c0504d", "local": "#f0a202", "strided": HERE}


def attention_cpu(result: dict):
    """Milliseconds of this library and of dense attention, a group of bars for each pattern."""
    where, rows = result["machine"], result["cases"]
    labels = {case.name: case.pattern_label for case in cases.CPU}
    sides = {
        "this": ("this library", HERE),
        "torch": (f"PyTorch {where['torch']}, dense and causal", FLEX),
        "dense": (f"TensorFlow {where['tensorflow']}, dense and masked", DENSE),
    }
    figure, panels = blank(12, 5.2, 1, 2, sharey=True)
    for axes, step in zip(panels.flat, STEPS, strict=True):
        series = [
            (label, colour, [row.get(f"{side} {step}", np.nan) for row in rows])
            for side, (label, colour) in sides.items()
        ]
        bars(axes, [labels[row["case"]] for row in rows], series)
        axes.set_title(step)
    panels[0, 0].set_ylabel("milliseconds, logarithmic")
    under(figure, panels[0, 0])
    case = cases.CPU[0]
    size = f"{case.batch}x{case.heads}x{case.time}x{case.dim} (batch x heads x time x head_dim)"
    machine = f"{where['cores']} cores of {where['cpu']}"
    figure.suptitle(f"Attention on a CPU: float32, {size}, {machine}; medians, less is better")
    return figure


def attention_gpu(result: dict):
    """Milliseconds of this library and its peers, a group of bars for each case, and the floor of each."""
    entries, labels = result["table"], {case.name: case.label for case in cases.GPU}
    names = list(dict.fromkeys(entry["case"] for entry in entries))
    peers = {
        "flex": ("FlexAttention, the same pattern", FLEX),
        "cudnn": ("cuDNN, all and local", CUDNN),
        "fa4": ("FlashAttention-4, all and local", FLASH),
    }
    figure, panels = blank(19, 10, 2, 1, sharex=True)
    for axes, step in zip(panels.flat, STEPS, strict=True):
        chosen = {entry["case"]: entry for entry in entries if entry["step"] == step}
        series = [("this library", HERE, [chosen[name]["ms"] for name in names])]
        for peer, (label, colour) in peers.items():
            series.append((label, colour, [chosen[name]["peers"].get(peer, np.nan) for name in names]))
        ours = bars(axes, [labels[name].replace(" ", "\n", 1) for name in names], series)
        axes.tick_params(axis="x", labelsize=8.5)
        floors = [chosen[name]["floor"] for name in names]
        words = "floor: the least that bytes, products or exponentials allow this library"
        axes.hlines(floors, ours - 0.6 * WIDTH, ours + 0.6 * WIDTH, colors="k", lw=2, label=words)
        axes.set_ylabel(f"{step}, milliseconds, logarithmic")
    under(figure, panels[0, 0])
    card, *versions = result["machine"].split(", ")
    figure.suptitle(
        f"Attention on a GPU: float16, one {card}; medians of device time, less is better; "
        f"rows: batch x heads x time x head_dim and the pattern\n{', '.join(versions)}"
    )
    return figure


def model_context(result: dict):
    """Milliseconds over the context's length, with the slopes that arithmetic says."""
    times = {mode: {int(n): ms for n, ms in each.items()} for mode, each in result["milliseconds"].items()}
    figure, panels = blank(9, 6, 1, 1)
    axes = panels[0, 0]
    longest = max(n for each in times.values() for n in each)
    for mode, each in times.items():
        label = "all (dense)" if mode == "all" else mode
        axes.loglog(list(each), list(each.values()), "o-", color=LINES[mode], label=label, lw=2)
    for mode, power, words in (("all", 2, "n²"), ("fixed", 1.5, "n·√n")):
        last, ms = list(times[mode].items())[-1]
        n = np.array([min(times[mode]), longest])
        axes.loglog(n, ms * (n / last) ** power, ":", color="0.3", lw=1)
        axes.annotate(words, (longest, ms * (longest / last) ** power), (8, -10), textcoords="offset points")
    last, ms = list(times["all"].items())[-1]
    axes.annotate(
        f"dense stops here: by n²,\n{longest:,} positions would take\n{ms * (longest / last) ** 2 / 1e3:.0f} s a run",
        (last, ms),
        (-170, 40),
        textcoords="offset points",
        arrowprops={"arrowstyle": "->"},
    )
    ticks = sorted({n for each in times.values() for n in each})
    axes.set_xticks(ticks, [f"n = {n:,}\nl = {cases.CONTEXTS[n]}" for n in ticks], minor=False)
    axes.minorticks_off()
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.set(xlabel="context n; window, stride or chunk l = √n", ylabel="forward and backward, milliseconds")
    axes.set_xlim(right=longest * 1.5)
    axes.grid(alpha=0.3)
    axes.legend(title="attn_mode", loc="upper left")
    case = cases.at_context("all", min(ticks))
    figure.suptitle(
        f"Attention over context: {result['dtype']}, batch {case.batch}, {case.heads} heads of {case.dim}\n"
        f"{machine(result)}; medians, less is better"
    )
    return figure


def model_quality(result: dict):
    """Training curves of every seed, and what each ended at on held-out text."""
    settings, runs = result["settings"], result["results"]
    figure, panels = blank(9, 6, 1, 1)
    axes = panels[0, 0]
    for name, seeds in runs.items():
        ends = [run["bits"] for run in seeds.values()]
        label = f"{name}: {', '.join(f'{bits:.2f}' for bits in ends)}; mean {np.mean(ends):.2f}"
        for run in seeds.values():
            mean = np.convolve(run["curve"], np.ones(10) / 10, mode="valid")
            axes.plot(np.arange(9, 9 + len(mean)), mean, color=LINES[name], alpha=0.8, label=label)
            label = None
    axes.set(xlabel="step", ylabel="bits per byte in training, the mean of 10 steps")
    axes.grid(alpha=0.3)
    axes.legend(title="attention: bits per byte held out, a seed each")
    run = next(iter(next(iter(runs.values())).values()))
    figure.suptitle(
        f"Dense and sparse attention in small: {settings['layers']} layers of width {settings['width']}, "
        f"{settings['grid'][0] * settings['grid'][1]:,} bytes of context\n"
        f"{settings['steps']} steps of {settings['batch']} windows, {settings['precision']}, one {run['device']}, "
        f"three seeds of each\ntext: the {settings['data']}"
    )
    return figure


def model_scaling(result: dict):
    """How many times one GPU's rate, a panel a model: with the same batch a GPU, and with the same in all."""
    rows = [row for row in result["rows"] if "bits" in row]
    models = list(dict.fromkeys(row["model"] for row in rows))
    figure, panels = blank(5 * len(models), 5, 1, len(models), sharey=True)
    for axes, model in zip(panels.flat, models, strict=True):
        here = [row for row in rows if row["model"] == model]
        counts = sorted({row["gpus"] for row in here})
        axes.plot(counts, counts, ":", color="0.3", lw=1, label="as many times as GPUs")
        for (way, words), colour in zip(WAYS.items(), (HERE, FLASH), strict=True):
            size = 11 if way == "mirrored" else 5  # both show where they agree
            for batch, style in (("the same batch a GPU", "o-"), ("the same batch in all", "s--")):
                times = times_one_gpu([r for r in here if r["way"] in ("one", way)], weak="a GPU" in batch)
                if len(times) > 1:
                    axes.plot(*zip(*times), style, color=colour, ms=size, label=f"{words}, {batch}")
        axes.set_xticks(counts, list(map(str, counts)))
        axes.set(xlabel="GPUs", title=model)
        axes.grid(alpha=0.3)
        axes.legend()
    panels[0, 0].set_ylabel("times one GPU's sequences a second")
    figure.suptitle(f"Training steps of whole models, float16, GPUs of one machine\n{result['machine']}")
    return figure


def times_one_gpu(rows: list[dict], weak: bool) -> list[tuple[int, float]]:
    """(GPUs, times one GPU's rate) where one GPU was measured with the same batch a GPU (weak) or the same batch."""
    alone = {row["batch"]: row["seconds"] for row in rows if row["gpus"] == 1}
    found = {1: 1.0}
    for row in rows:
        parts = row["gpus"] if weak else 1
        if row["batch"] // parts in alone and row["gpus"] > 1:
            found[row["gpus"]] = parts * alone[row["batch"] // parts] / row["seconds"]
    return sorted(found.items())


def machine(result: dict) -> str:
    """Card or processor of a result of TensorFlow's, and its version."""
    cores = f"{result.get('cores')} cores of {result.get('cpu', 'a CPU')}"
    where = cores if result["device"] == "CPU" else result["device"]
    return f"{where}, TensorFlow {result['tensorflow']}"


def blank(width: float, height: float, rows: int, columns: int, **shared):
    """(figure, array of axes), whatever backend is chosen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def bars(axes, groups: list[str], series: list[tuple[str, str, list[float]]]) -> list[float]:
    """Groups of bars of (label, colour, heights), logarithmic, each with its height; NaN has no bar. Returns where the
    bars of the first series stand.
    """
    there = np.isfinite([heights for _, _, heights in series])
    place = WIDTH * (np.cumsum(there, axis=0) - 1 - (there.sum(axis=0) - 1) / 2) + np.arange(len(groups))
    for (label, colour, heights), x, drawn in zip(series, place, there, strict=True):
        heights = np.asarray(heights)[drawn]
        axes.bar(x[drawn], heights, 0.95 * WIDTH, color=colour, label=label)
        for at, height in zip(x[drawn], heights, strict=True):
            text = f"{height:.0f}" if height >= 10 else f"{height:#.2g}"
            axes.annotate(text, (at, height), (0, 1), textcoords="offset points", ha="center", fontsize=7.5)
    axes.set_xticks(np.arange(len(groups)), groups)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    return place[0]


def under(figure, axes) -> None:
    """The legend, below the figure."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)


PICTURES = (attention_cpu, attention_gpu, model_context, model_quality, model_scaling)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder to write into")
    args = parser.parse_args()
    for draw in PICTURES:
        result = json.loads((RESULTS / f"{draw.__name__}.json").read_text())
        path = args.out / f"{draw.__name__}.png"
        draw(result).savefig(path, dpi=110)
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
