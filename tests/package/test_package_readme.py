"""README.md and docs/ do what they say.

The Python blocks of a page run one after the other in one namespace, and print the `text` block that follows, or the
comments behind their prints. Commands are run here, or by .ci/run, or name scripts and options that exist.
"""

import contextlib
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
GUIDES = ("README.md", "CONTRIBUTING.md", "RELEASE.md", "benchmarks/README.md")
PAGES = [*(ROOT / name for name in GUIDES), *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page):
    """(language, line number, text, what it prints) of each fenced block."""
    text = page.read_text(encoding="utf-8")
    found = list(BLOCK.finditer(text))
    for block, after in zip(found, [*found[1:], None]):
        behind = "".join(line + "\n" for line in re.findall(r"^print\(.*\)  # (.*)$", block[2], re.MULTILINE))
        below = after and after[1] == "text" and not text[block.end() : after.start()].strip()
        yield block[1], text.count("\n", 0, block.start(2)) + 1, block[2], after[2] if below else behind


def commands(page):
    lines = [
        line for language, _, text, _ in blocks(page) if language == "console" for line in text.splitlines()
    ]
    return [line.removeprefix("$ ").partition("  #")[0].strip() for line in lines if line.startswith("$ ")]


def named(pages):
    return [pytest.param(page, id=str(page.relative_to(ROOT))) for page in pages]


WITH_PYTHON = [page for page in PAGES if any(language == "python" for language, *_ in blocks(page))]
COMMANDS = [(page, command) for page in PAGES for command in commands(page)]

# Beginnings of the README's commands that are not run by this test, and why.
ELSEWHERE = {
    "make ": "run by .ci/run; make paper at a tiny scale by tests/model/test_model_paper.py",
    "pip install": "run by .ci/run, in its wheel and Dockerfile steps",
    "docker ": "no engine in CI; .ci/run follows the Dockerfile",
    "source ": "a shell's own",
}
QUICK = {"examples/enwik8.py": ["--smoke"], "examples/train.py": ["--steps", "2", "--override", "layers=1"]}


@pytest.mark.parametrize("page", named(WITH_PYTHON))
def test_python_blocks_run_and_print_what_follows_them(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some save files
    monkeypatch.setenv("BLOCKSPARSE_KERNELS", "auto")  # some set it
    namespace = {"__name__": "__main__"}
    for language, line, text, shown in blocks(page):
        if language != "python":
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * (line - 1) + text, str(page), "exec"), namespace)
        assert printed.getvalue() == shown, f"{page.name}:{line}"


def test_readme_commands_run(tmp_path):
    """One after the other, in a folder of their own, as some go on from what others wrote."""
    for command in (c for c in commands(README) if not c.startswith(tuple(ELSEWHERE))):
        program, script, *arguments = shlex.split(command)
        assert program == "python", f"say in ELSEWHERE who runs {command!r}"
        subprocess.run(
            [sys.executable, ROOT / script, *arguments, *QUICK.get(script, [])], cwd=tmp_path, check=True
        )


@pytest.mark.parametrize(
    ("page", "command"),
    [pytest.param(page, command, id=command[:60]) for page, command in dict.fromkeys(COMMANDS)],
)
def test_commands_name_what_there_is(page, command):
    """Targets of the Makefile; scripts and modules of ours, and options that they know."""
    variable = re.compile("[A-Z_]+=.*")
    words = [word for word in shlex.split(command) if not variable.fullmatch(word)]
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(words[1:]) <= {*targets}, targets
    elif words[0] in ("python", ".venv/bin/python"):
        script, arguments = script_of(words[1:])
        assert script is None or script.is_file(), script
        options = [word.partition("=")[0] for word in arguments if word.startswith("--")]
        assert [option for option in options if option not in known_options(script)] == []
    else:
        assert command.startswith(tuple(ELSEWHERE) + GENERAL), f"nothing checks {command!r}"


# What belongs to the machine and is only shown.
GENERAL = ("git ", "pip ", "pre-commit ", "nvidia-smi", ".ci/run", "ls ", "export ")


def script_of(words):
    """(file of ours that `python WORDS` runs, or None; its arguments)."""
    if words[0] != "-m":
        return ROOT / words[0], words[1:]
    module = words[1].split(".")
    if module[0] not in ("sparse_attention", "blocksparse"):
        return None, []
    path = ROOT.joinpath(*(module[1:] if module[0] == "sparse_attention" else module))
    return path.with_suffix(".py"), words[2:]


def known_options(script):
    """The options written in a script and around it, and those of `python attention.py` for its sizes."""
    around = [script, ROOT / "compare.py", *script.parent.glob("*.py"), *script.parent.glob("*/*.py")]
    text = "".join(path.read_text() for path in around if path.is_file())
    sizes = re.findall(r'"([a-z-]+)": \d+', (ROOT / "compare.py").read_text())
    return {*re.findall(r'"(--[a-z-]+)"', text), *(f"--{name}" for name in sizes), "--help"}


def test_readme_shows_both_commands_first():
    assert commands(README)[:2] == ["make demo", "make test"]


def test_readme_is_short():
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 120] == []


@pytest.mark.parametrize("page", named(PAGES))
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_every_variable_of_the_environment_is_in_the_readme():
    sources = [path for folder in ("blocksparse", ".") for path in (ROOT / folder).glob("*.py")]
    sources += [*(ROOT / "blocksparse").rglob("*.py"), *(ROOT / "examples").rglob("*.py")]
    read = {
        name
        for path in sources
        for name in re.findall(r"environ(?:\.\w+)?[(\[]\"([A-Z][A-Z_]+)\"", path.read_text(encoding="utf-8"))
    }
    text = README.read_text(encoding="utf-8")
    assert sorted(name for name in read if f"`{name}`" not in text) == []
    assert {"BLOCKSPARSE_KERNELS", "BLOCKSPARSE_CACHE", "BLOCKSPARSE_PREBUILT", "CXX"} <= read
