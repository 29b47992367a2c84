"""Which trainings make the paper at a scale, and what is made of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..config import Config, load

PATTERNS = ("dense", "fixed", "strided")  # Table 2's rows


@dataclass(frozen=True)
class Training:
    """One run: the arguments of train.py, and where its results go."""

    kind: str  # text, images or sound
    pattern: str  # of PATTERNS; of sound its length
    seed: int
    config: str
    overrides: tuple[str, ...] = ()

    def folder(self, out: Path) -> Path:
        return out / self.kind / f"{self.pattern}_{self.seed}"

    def settings(self) -> Config:
        return load(self.config).override([*self.overrides, f"seed={self.seed}"])


@dataclass(frozen=True)
class Scale:
    """`shown`: of each kind the model that samples are drawn from, below the scale's folder or a committed one."""

    name: str
    words: str  # what it is and what it takes, as the page says it
    data: dict[str, str | None]  # of each kind, below --data; None: built in
    trainings: tuple[Training, ...]
    windows: str  # train.py's --test
    scored: str | None  # the committed model that Table 3 is of; None: the runs of `fixed`
    contexts: tuple[int, ...]  # Table 3's rows, the tokens that are scored, and how far windows move
    context_tokens: int
    context_shift: int
    shown: dict[str, str]
    looked_at: tuple[str, ...]  # models of images, for Figure 2
    drawn: dict[str, int]  # of text and of sound, how many tokens a sample has
    given: int | None = None  # bytes of training text that compressors are given, its last; None: all

    def of_kind(self, kind: str) -> list[Training]:
        return [training for training in self.trainings if training.kind == kind]


def _rows(kind: str, names: dict[str, tuple[str, ...]], seeds: tuple[int, ...]) -> list[Training]:
    """names: of each row the configuration and what changes in it."""
    return [
        Training(kind, row, seed, config, tuple(changes))
        for seed in seeds
        for row, (config, *changes) in names.items()
    ]


DICTIONARY, GARMENTS = "gcide/gcide.dict.dz", "fashion"
# l of the models of text: a byte keeps its place in its chunk of `fixed` when a window moves so far.
_CHUNK = 128
_CONTEXTS = (0, 256, 512, 1024, 1536, 1792, 1920)
_MERGED = "layer_modes=local+strided"
_FIXED_ON_IMAGES = ("layer_modes=fixed", "blocksize=8", "num_verts=1", "vertsize=1")  # as fashion_fixed
_SMALL_IMAGES = (
    "layers=2", "width=64", "heads=2", "dropout=0", "batch=8", "steps=300", "warmup=50", "average=0.99",
    "precision=float32", "xla=False", "checkpoint_every=100",
)  # fmt: skip


def _small_sound(side: int, steps: int) -> tuple[str, ...]:
    few = ("batch=1", "average=0.9", f"steps={steps}", "warmup=10", "checkpoint_every=10")
    return ("music_small", f"grid=({side}, {side})", f"local_attn_ctx={side}", *few)


LAPTOP = Scale(
    name="laptop",
    words="small models, one seed each, on two CPU cores in twenty minutes. So short a training ranks no patterns: it "
    "shows that every step works. Samples and Table 3 are of the two committed models, which one GPU trained",
    data={"text": DICTIONARY, "images": GARMENTS, "sound": None},
    trainings=(
        *_rows(
            "text",
            {
                "dense": ("enwik8_small", "layer_modes=all", "steps=500"),
                "fixed": ("enwik8_small", "steps=500"),
                "strided": ("enwik8_small", _MERGED, "steps=500"),
            },
            seeds=(1,),
        ),
        *_rows(
            "images",
            {
                "dense": ("fashion", *_SMALL_IMAGES, "layer_modes=all"),
                "fixed": ("fashion", *_SMALL_IMAGES, *_FIXED_ON_IMAGES),
                "strided": ("fashion", *_SMALL_IMAGES),
            },
            seeds=(1,),
        ),
        *_rows(
            "sound",
            {"4096": _small_sound(64, 100), "16384": _small_sound(128, 30), "65536": _small_sound(256, 10)},
            seeds=(1,),
        ),
    ),
    windows="128",
    scored="text",
    contexts=_CONTEXTS,
    context_tokens=16_384,
    context_shift=_CHUNK,
    shown={"text": "text", "images": "image", "sound": "sound/65536_1"},
    looked_at=("images/dense_1", "image"),
    drawn={"text": 500, "sound": 24_000},
    given=4_000_000,
)

# An average over a thousand steps would still hold the start of so short a training.
_SHORT_SOUND = ("batch=1", "steps=120", "warmup=40", "average=0.9", "checkpoint_every=60")

CARD = Scale(
    name="card",
    words="models of 3.9M parameters, three seeds each, on one GPU in about two hours. Samples and Table 3 are of the "
    "two committed models, the same ones trained for longer",
    data={"text": DICTIONARY, "images": GARMENTS, "sound": None},
    trainings=(
        *_rows(
            "text",
            {
                "dense": ("gcide_pocket", "layer_modes=all"),
                "fixed": ("gcide_pocket",),
                "strided": ("gcide_pocket", _MERGED),
            },
            seeds=(1, 2, 3),
        ),
        *_rows(
            "images",
            {
                "dense": ("fashion_pocket", "layer_modes=all"),
                "fixed": ("fashion_pocket", *_FIXED_ON_IMAGES),
                "strided": ("fashion_pocket",),
            },
            seeds=(1, 2, 3),
        ),
        *_rows(
            "sound",
            {
                str(n): (f"music_{n}", f"learning_rate={rate}", *_SHORT_SOUND)
                for n, rate in {65_536: 3e-4, 262_144: 5e-4, 1_048_576: 1.5e-3}.items()
            },
            seeds=(1,),
        ),
    ),
    windows="all",
    scored="text",
    contexts=_CONTEXTS,
    context_tokens=262_144,
    context_shift=_CHUNK,
    shown={"text": "text", "images": "image", "sound": "sound/65536_1"},
    looked_at=("images/dense_1", "image"),
    drawn={"text": 500, "sound": 36_000},
)

FULL = Scale(
    name="full",
    words="the paper's own configurations, three seeds each; eight GPUs need weeks",
    data={"text": "enwik8", "images": "cifar10", "sound": "music"},
    trainings=(
        *_rows(
            "text",
            {"dense": ("enwik8_dense",), "fixed": ("enwik8",), "strided": ("enwik8_strided",)},
            seeds=(1, 2, 3),
        ),
        *_rows(
            "images",
            {"dense": ("cifar10_dense",), "fixed": ("cifar10_fixed",), "strided": ("cifar10",)},
            seeds=(1, 2, 3),
        ),
        *_rows("sound", {str(n): (f"music_{n}",) for n in (65_536, 262_144, 1_048_576)}, seeds=(1,)),
    ),
    windows="all",
    scored=None,
    contexts=(6144, 9216, 10_752, 11_904, 12_096, 12_160),
    context_tokens=1_000_000,
    context_shift=64,  # the paper's rows are no multiples of 128, which is l
    shown={"text": "text/fixed_1", "images": "images/strided_1", "sound": "sound/65536_1"},
    looked_at=("images/dense_1",),
    drawn={"text": 2000, "sound": 65_536},
)

SCALES = {scale.name: scale for scale in (LAPTOP, CARD, FULL)}
