"""The commands that make the paper at a scale; each leaves a file, and is not done again where that is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .. import runs
from .scales import Scale, Training

PROMPTS = ("Sparse \\Sparse\\, a. ", 'Ocean \\O"cean\\, n. ')


@dataclass(frozen=True)
class Step:
    says: str
    makes: Path
    words: tuple[str, ...]  # a script of examples/ and its arguments


@dataclass(frozen=True)
class Places:
    """Where the data lies and where results go."""

    scale: Scale
    data: Path
    out: Path

    def data_of(self, kind: str) -> list[str]:
        path = self.scale.data[kind]
        return [] if path is None else ["--data", str(self.data / path)]

    def model(self, name: str) -> str:
        """A committed model's name as it is, that of a run as its folder."""
        return str(self.out / name) if "/" in name else name


def plan(places: Places, changes: list[str]) -> list[Step]:
    """changes: KEY=VALUE for every configuration."""
    scale, out = places.scale, places.out
    steps = [_training(places, training, changes) for training in scale.trainings]
    steps += _contexts(places)
    steps += _pictures(places)
    steps += _samples(places)
    for kind in ("text", "images"):
        path, run = out / f"yardsticks_{kind}.json", scale.of_kind(kind)[0].folder(out)
        words = ("yardsticks.py", str(run), *places.data_of(kind), "--json", str(path))
        if scale.given is not None and kind == "text":
            words += ("--last", str(scale.given))
        steps.append(Step(f"what compressors need for the {kind}", path, words))
    return steps


def _training(places: Places, training: Training, changes: list[str]) -> Step:
    words = train_words(places, training, [*training.overrides, f"seed={training.seed}", *changes])
    says = f"{training.kind}, {training.pattern}, seed {training.seed}"
    return Step(says, training.folder(places.out) / runs.SCORES, words)


def train_words(places: Places, training: Training, changes: list[str]) -> tuple[str, ...]:
    """The command that makes the run; changes: KEY=VALUE in its configuration."""
    windows = places.scale.windows if training.kind != "sound" else "4"
    out = ("--test", windows, "--out", str(training.folder(places.out)))
    overrides = [word for change in changes for word in ("--override", change)]
    return ("train.py", training.config, *places.data_of(training.kind), *out, *overrides)


def _contexts(places: Places) -> list[Step]:
    """Table 3's scores: of the `fixed` runs of text, or of the scale's committed model."""
    scale = places.scale
    models = [f"text/fixed_{each.seed}" for each in scale.of_kind("text") if each.pattern == "fixed"]
    if scale.scored is not None:
        models = [scale.scored]
    contexts = [str(context) for context in scale.contexts]
    tokens = ["--tokens", str(scale.context_tokens), "--shift", str(scale.context_shift), "--batch", "16"]
    steps = []
    for number, model in enumerate(models, 1):
        path = places.out / f"context_{number}.json"
        words = ["evaluate.py", places.model(model), *places.data_of("text"), "--split", "test", *tokens]
        words += ["--min-context", *contexts, "--json", str(path)]
        steps.append(Step(f"minimum context, {model}", path, tuple(words)))
    return steps


def _pictures(places: Places) -> list[Step]:
    scale, out = places.scale, places.out
    steps = [_picture(out / "figure3.png", "Figure 3", "connectivity")]
    for number, name in enumerate(scale.looked_at, 1):
        words = (places.model(name), *places.data_of("images"))
        for picture, more in (("heads", ()), ("mean", ("--images", "16"))):
            path = out / f"figure2_{number}_{picture}.png"
            steps.append(_picture(path, f"Figure 2, {name}, {picture}", "attention", *words, *more))
    for kind in scale.data:
        folders = [str(each.folder(out)) for each in scale.of_kind(kind)]
        steps.append(_picture(out / f"curves_{kind}.png", f"curves, {kind}", "curves", *folders))
    return steps


def _picture(path: Path, says: str, *words: str) -> Step:
    return Step(says, path, ("plot.py", *words, "--out", str(path)))


def _samples(places: Places) -> list[Step]:
    scale, out = places.scale, places.out
    text, images, sound = (places.model(scale.shown[kind]) for kind in ("text", "images", "sound"))
    steps = []
    for number, prompt in enumerate(PROMPTS, 1):
        path = out / f"text{number}"
        words = (
            "sample.py",
            text,
            "--prompt",
            prompt,
            "--length",
            str(scale.drawn["text"]),
            "--out",
            str(path),
        )
        steps.append(Step(f"text {number}", path.with_suffix(".txt"), words))
    completed, grid = out / "completed.png", out / "images"
    words = ("complete.py", images, *places.data_of("images"), "--count", "16", "--out", str(completed))
    steps.append(Step("images completed", completed, words))
    words = ("sample.py", images, "--count", "64", "--out", str(grid))
    steps.append(Step("images from nothing", grid.with_suffix(".png"), words))
    words = ("sample.py", sound, "--length", str(scale.drawn["sound"]), "--out", str(out / "sound"))
    return [*steps, Step("sound", out / "sound0.wav", words)]


def absent(places: Places) -> list[str]:
    """What of the data is not there, each with what to do."""
    missing = []
    for path in (places.data / each for each in places.scale.data.values() if each is not None):
        if not path.exists():
            name = path.relative_to(places.data).parts[0]
            missing.append(f"there is no {path}; {WHENCE[name].format(place=places.data / name)}")
    return missing


WHENCE = {
    "gcide": "python examples/fetch.py gcide --out {place}",
    "fashion": "python examples/fetch.py fashion --out {place}",
    "enwik8": "put the first 10^8 bytes of a Wikipedia dump there, http://mattmahoney.net/dc/enwik8.zip unpacked",
    "cifar10": "put CIFAR-10's batches for Python there, https://www.cs.toronto.edu/~kriz/cifar.html",
    "music": "put recordings of classical music there, .wav or .flac; the paper's own set is not documented",
}
