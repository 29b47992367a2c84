"""Follows ../Dockerfile without a Docker engine: a folder with a virtual environment stands for each image.

    python .ci/dockerfile.py FOLDER [--cpu]

RUN lines are executed as they stand, with image paths moved under the stage's folder; those that need root
are skipped. The final command runs without a compiler, and fails where the ops built before are not used.
`--cpu` leaves out CUDA's wheels (gigabytes).
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NEEDS_ROOT = ("apt-get", "useradd")


class Stage:
    """One image: its folder, its environment, and its working directory."""

    def __init__(self, folder: Path):
        self.folder = folder
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        path = f"{folder}/venv/bin:{os.environ['PATH']}"
        self.env = {**os.environ, "PATH": path, "XDG_CACHE_HOME": str(folder / "cache")}
        self.work = folder

    def inside(self, text: str) -> str:
        """The image's absolute paths, moved under the folder."""
        return re.sub(r"(?<![\w/.])/(?=opt/|sparse_attention)", f"{self.folder}/", text)

    def copy(self, source: Path, target: str) -> None:
        ignore = shutil.ignore_patterns(".git", ".venv", "build", "runs", "__pycache__")
        shutil.copytree(source, self.work / self.inside(target), dirs_exist_ok=True, ignore=ignore)

    def run(self, command: str) -> None:
        print(f"+ {command}", flush=True)
        subprocess.run(["sh", "-ec", command], cwd=self.work, env=self.env, check=True)


def follow(lines: list[str], folder: Path, cpu: bool) -> None:
    stages: dict[str, Stage] = {}
    for line in lines:
        word, _, rest = line.partition(" ")
        if word == "FROM":
            name = rest.partition(" AS ")[2] or "final"
            stages[name] = stage = Stage(folder / name)
            if name == "final":
                stage.env["CXX"] = "not-in-this-image"
                stage.env["PYTHONWARNINGS"] = "error:blocksparse runs in plain TensorFlow:RuntimeWarning"
        elif word in ("ARG", "ENV"):
            key, _, value = rest.partition("=")
            stage.env[key] = stage.inside(value)
        elif word == "WORKDIR":
            stage.work = Path(stage.inside(rest))
            stage.work.mkdir()
        elif word == "COPY":
            *source_stage, source, target = rest.split()
            origin = stages[source_stage[0].removeprefix("--from=")] if source_stage else None
            stage.copy(Path(origin.inside(source)) if origin else ROOT, target)
        elif word == "RUN" and not rest.startswith(NEEDS_ROOT):
            stage.run(stage.inside(rest.replace(".[gpu]", ".") if cpu else rest))
        elif word == "CMD":
            stage.run(" ".join(json.loads(rest)))
        elif word not in ("RUN", "USER"):
            sys.exit(f"Dockerfile: {word} is not followed here")


def main() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    follow(lines, Path(sys.argv[1]).resolve(), cpu="--cpu" in sys.argv)


if __name__ == "__main__":
    main()
