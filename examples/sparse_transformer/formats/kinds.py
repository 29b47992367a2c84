"""What a file is, by the end of its name, and how one of another kind becomes what a model learns."""

from __future__ import annotations

import shlex
from pathlib import Path

ENDINGS = {
    "picture": (".png", ".jpg", ".jpeg"),
    "other picture": (".gif", ".webp", ".bmp", ".tif", ".tiff", ".heic", ".avif"),
    "recording": (".wav", ".flac"),
    "other recording": (".mp3", ".m4a", ".aac", ".ogg", ".opus", ".wma", ".aif", ".aiff", ".mid", ".midi"),
    "film": (".mp4", ".m4v", ".mov", ".mkv", ".avi", ".webm", ".mpg", ".mpeg", ".wmv"),
    "text": (".txt", ".md", ".csv", ".json", ".xml", ".html", ".tex", ".py"),
    "document": (".docx", ".odt", ".epub", ".rtf"),
    "PDF": (".pdf",),
    "archive": (".zip", ".rar", ".7z"),
}
_OF = {ending: kind for kind, endings in ENDINGS.items() for ending in endings}
_UNPACK = "{name} is an archive; unpack it, and give the folder"
_SOUND = "{name} is neither WAV nor FLAC; convert it: ffmpeg -i {name} {stem}.wav"
_ANOTHER = "{{name}} is {}; train {} on it"

# For each kind of data: kinds of files that are something else, the likeliest first, and what is to be done.
REPAIRS = {
    "images": {
        "other picture": "{name} is neither PNG nor JPEG; convert them: magick mogrify -format png *{ending}",
        "film": "{name} is a film; take a picture a second out of it: mkdir pictures && ffmpeg -i {name} -vf fps=1 "
        "pictures/%06d.png, and give the folder pictures",
        "picture": "{name} is one picture; give the folder of all of them",
        "archive": _UNPACK,
        "recording": _ANOTHER.format("a recording", "music_small"),
        "other recording": _ANOTHER.format("a recording", "music_small") + ", once it is a .wav file",
        "text": _ANOTHER.format("text", "enwik8_small"),
    },
    "audio": {
        "other recording": _SOUND,
        "film": _SOUND,
        "archive": _UNPACK,
        "picture": _ANOTHER.format("a picture", "cifar10_small") + " and the rest of its folder",
        "other picture": _ANOTHER.format("a picture", "cifar10_small") + " and the rest of its folder, as PNG",
        "text": _ANOTHER.format("text", "enwik8_small"),
    },
    "text": {
        "document": "{name} is no plain text; convert it: pandoc {name} -t plain -o {stem}.txt",
        "PDF": "{name} is a PDF; convert it with pdftotext {name}",
        "archive": _UNPACK,
        "picture": _ANOTHER.format("a picture", "cifar10_small") + " and the rest of its folder",
        "other picture": _ANOTHER.format("a picture", "cifar10_small") + " and the rest of its folder, as PNG",
        "recording": _ANOTHER.format("a recording", "music_small"),
        "other recording": _ANOTHER.format("a recording", "music_small") + ", once it is a .wav file",
        "film": "{name} is a film; train music_small on its sound (ffmpeg -i {name} {stem}.wav) or cifar10_small on "
        "its pictures (ffmpeg -i {name} -vf fps=1 %06d.png)",
    },
}  # fmt: skip


def kind_of(path: Path) -> str | None:
    """A key of ENDINGS, or None where the name does not say."""
    return _OF.get(path.suffix.lower())


def repair(data: str, path: Path) -> str | None:
    """What the file is, or a file of the folder, and what is to be done with it. None where nothing is known.

    data: a key of REPAIRS, what the model learns.
    """
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    for kind, words in REPAIRS[data].items():
        for file in files:
            if kind_of(file) == kind:
                name, stem = shlex.quote(file.name), shlex.quote(file.stem)
                return words.format(name=name, stem=stem, ending=file.suffix)
    return None
