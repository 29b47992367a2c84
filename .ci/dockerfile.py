"""Follows ../Dockerfile without a Docker engine: a folder with a virtual environment stands for each image.

    python .ci/dockerfile.py FOLDER [--cpu]

RUN lines are executed as they stand, with image paths moved under the stage's folder and what pip has downloaded
before; those that need root are skipped. Stages run side by side, as under BuildKit. The final command runs without a
compiler, and fails where the ops built before are not used; `make paper`, a container's other command, has to find all
installed. `--cpu` leaves out CUDA's wheels (gigabytes) and the examples', as `make paper` is planned here, not run.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IGNORED = [line.removeprefix("**/") for line in (ROOT / ".dockerignore").read_text().splitlines()]
NEEDS_ROOT = ("apt-get", "useradd")


class Stage:
    """One image: its folder, its environment, and its working directory."""

    def __init__(self, folder: Path):
        self.folder = folder
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        path = f"{folder}/venv/bin:{os.environ['PATH']}"
        pip = {"PIP_QUIET": "1", "PIP_COMPILE": "0"}
        self.env = {**os.environ, **pip, "PATH": path, "BLOCKSPARSE_CACHE": str(folder / "cache")}
        self.work = folder

    def inside(self, text: str) -> str:
        """The image's absolute paths, moved under the folder."""
        return re.sub(r"(?<![\w/.])/(?=opt/|sparse_attention)", f"{self.folder}/", text)

    def copy(self, source: Path, target: str) -> None:
        to, ignore = self.work / self.inside(target), shutil.ignore_patterns(*IGNORED)
        shutil.copytree(source, to, dirs_exist_ok=True, ignore=ignore)

    def run(self, command: str) -> None:
        print(f"+ {command}", flush=True)
        subprocess.run(["sh", "-ec", command], cwd=self.work, env=self.env, check=True)


def build(stage: Stage, lines: list[str], others: dict[str, Future], cpu: bool) -> Stage:
    """Follows the lines of a stage that come after its FROM."""
    for line in lines:
        word, _, rest = line.partition(" ")
        if word in ("ARG", "ENV"):
            key, _, value = rest.partition("=")
            stage.env[key] = stage.inside(value)
        elif word == "WORKDIR":
            stage.work = Path(stage.inside(rest))
            stage.work.mkdir()
        elif word == "COPY":
            *options, source, target = rest.split()
            origin = others[options[0].removeprefix("--from=")].result() if options else None
            stage.copy(Path(origin.inside(source)) if origin else ROOT, target)
        elif word == "RUN" and not rest.startswith(NEEDS_ROOT):
            command = stage.inside(rest).replace("--no-cache-dir ", "")
            stage.run(command.replace(".[gpu,examples]", ".") if cpu else command)
        elif word == "CMD":
            stage.env["CXX"] = "not-in-this-image"
            stage.env["PYTHONWARNINGS"] = "error:blocksparse runs in plain TensorFlow:RuntimeWarning"
            stage.run(" ".join(json.loads(rest)))
            stage.run("plan=$(make --dry-run paper); ! echo \"$plan\" | grep 'pip install\\|-m venv'")
        elif word not in ("RUN", "USER"):
            sys.exit(f"Dockerfile: {word} is not followed here")
    return stage


def follow(lines: list[str], folder: Path, cpu: bool) -> None:
    starts = [at for at, line in enumerate(lines) if line.startswith("FROM ")]
    stages: dict[str, Future] = {}
    with ThreadPoolExecutor(len(starts)) as pool:
        for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
            name = lines[start].partition(" AS ")[2] or "final"
            stages[name] = pool.submit(build, Stage(folder / name), lines[start + 1 : end], stages, cpu)
    for stage in stages.values():
        stage.result()


def main() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    text = text.replace("\\\n", " ")  # a line may go on in the next
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    follow(lines, Path(sys.argv[1]).resolve(), cpu="--cpu" in sys.argv)


if __name__ == "__main__":
    main()
