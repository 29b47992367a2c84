"""The floor plan of docs/architecture.md: arrows go down, no circle, small files and functions."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIBRARY = sorted([*ROOT.glob("*.py"), *(ROOT / "blocksparse").rglob("*.py")])
PRODUCT = sorted([*LIBRARY, *(ROOT / "examples").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")])
CPP = sorted(path for kind in ("*.h", "*.cc", "*.cu") for path in (ROOT / "blocksparse").rglob(kind))
# Each room may use itself and those named; a room is a folder of blocksparse, or its modules, or the root's.
ROOMS = {
    "plan": set(),
    "gpu": set(),
    "tensors": set(),
    "native": {"gpu"},
    "fused": {"plan", "gpu", "native", "tensors"},
    "recomputation": {"tensors"},
    "transformer": {"fused", "plan", "recomputation", "tensors"},
    "blocksparse": {"transformer", "fused", "plan", "native", "recomputation", "tensors"},
    "tf1": {"blocksparse"},
    "root": {"blocksparse", "transformer", "fused", "plan", "native", "recomputation", "tensors"},
}
WITHOUT_TENSORFLOW = ("plan", "gpu")


def room(path):
    parts = path.relative_to(ROOT).parts
    if parts[0] != "blocksparse":
        return "root"
    if len(parts) > 2:
        return parts[1]
    return "tensors" if parts[1] in ("tensors.py", "utils.py") else "blocksparse"


@cache
def tree(path):
    return ast.parse(path.read_text())


def modules(path):
    """The project's files that a module imports."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield from found(ROOT, name.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            base = path.parents[node.level - 1] if node.level else ROOT
            names = (node.module or "").split(".") if node.module else []
            home = list(found(base, names))
            for name in node.names:
                yield from (list(found(base, [*names, name.name])) if names or node.level else []) or home


def found(base, names):
    """The file of a dotted name under a folder, if it is the project's."""
    path = base.joinpath(*names)
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if names and file.is_file() and file in LIBRARY:
            yield file


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_go_down(path):
    own = room(path)
    if own not in ROOMS:
        own = next(name for name in ROOMS if name == path.relative_to(ROOT).parts[1])
    for target in modules(path):
        if target != ROOT / "blocksparse" / "__init__.py" or own != "root":
            assert room(target) in ROOMS[own] | {own}, (
                f"{path.name} ({own}) imports {target} ({room(target)})"
            )


def test_no_circle():
    arrows = {path: set(modules(path)) - {path} for path in LIBRARY}
    while free := [path for path, targets in arrows.items() if not targets & arrows.keys()]:
        for path in free:
            del arrows[path]
    assert not arrows, [str(path.relative_to(ROOT)) for path in arrows]


def test_the_planner_and_the_kernels_know_no_tensorflow():
    for path in LIBRARY:
        if room(path) in WITHOUT_TENSORFLOW:
            imported = [
                node for node in ast.walk(tree(path)) if isinstance(node, (ast.Import, ast.ImportFrom))
            ]
            assert "tensorflow" not in " ".join(map(ast.unparse, imported)), path


def test_two_ways_of_being_imported_only_where_a_checkout_needs_them():
    both = {path.name for path in PRODUCT if "if __package__" in path.read_text()}
    assert both <= {"attention.py", "recompute.py", "utils.py", "manifest.py", "key.py"}


@pytest.mark.parametrize("path", [*PRODUCT, *CPP], ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_small(path):
    assert len(path.read_text().splitlines()) <= 350
    if path.suffix == ".py":
        for node in ast.walk(tree(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.end_lineno - node.lineno < 70, (
                    f"{node.name} has {node.end_lineno - node.lineno + 1} lines"
                )
