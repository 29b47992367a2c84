"""README.md does what it says: its Python blocks run, and every command in it is run here or by .ci/run."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language):
    """(line number, text) of each fenced block."""
    return [
        (README.count("\n", 0, block.start(2)) + 1, block[2])
        for block in BLOCK.finditer(README)
        if block[1] == language
    ]


COMMANDS = [
    line.removeprefix("$ ").partition("  #")[0].strip()
    for _, text in blocks("console")
    for line in text.splitlines()
    if line.startswith("$ ")
]

# Beginnings of the commands that are not run by this test, and why.
ELSEWHERE = {
    "make ": "run by .ci/run",
    "pip install": "run by .ci/run, in its wheel and Dockerfile steps",
    "docker ": "no engine in CI; .ci/run follows the Dockerfile",
}
QUICK = {"examples/enwik8.py": ["--smoke"], "examples/train.py": ["--steps", "2", "--override", "layers=1"]}


@pytest.mark.parametrize(
    ("line", "text"), [pytest.param(*block, id=f"line{block[0]}") for block in blocks("python")]
)
def test_code_block_runs(line, text):
    exec(compile("\n" * (line - 1) + text, "README.md", "exec"), {})


def test_commands_run(tmp_path):
    """One after the other, in a folder of their own, as some go on from what others wrote."""
    for command in (c for c in COMMANDS if not c.startswith(tuple(ELSEWHERE))):
        program, script, *arguments = shlex.split(command)
        assert program == "python", f"say in ELSEWHERE who runs {command!r}"
        subprocess.run(
            [sys.executable, ROOT / script, *arguments, *QUICK.get(script, [])], cwd=tmp_path, check=True
        )


def test_readme_shows_both_commands_first():
    assert COMMANDS[:2] == ["make demo", "make test"]


def test_links_lead_somewhere():
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", README)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []
