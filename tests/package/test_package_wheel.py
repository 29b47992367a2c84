"""The wheel and the source archive hold exactly what they should."""

import importlib.util
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from blocksparse.gpu import manifest
from blocksparse.gpu.key import parse

ROOT = Path(__file__).parents[2]
ROOT_MODULES = {
    "__init__",
    "attention",
    "compare",
    "decode",
    "decode_groups",
    "patterns",
    "recompute",
    "silence",
    "utils",
}
ENGINE_SUFFIXES = {".py", ".h", ".cc", ".cu", ".json", ".typed"}


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy under a name that is no identifier, holding what a careless developer leaves lying about."""
    copy = tmp_path_factory.mktemp("wheel") / "a-b"
    subprocess.run(["git", "clone", "--quiet", ROOT, copy], check=True)
    for litter in ("conftest.py", "scratch.py", "blocksparse/notes.txt"):
        (copy / litter).write_text("raise SystemExit\n")
    return copy


def expected_files(clone):
    root = {f"sparse_attention/{file.name}" for file in clone.glob("*.py") if file.stem in ROOT_MODULES}
    engine = {
        str(file.relative_to(clone))
        for file in clone.glob("blocksparse/**/*")
        if file.suffix in ENGINE_SUFFIXES and "__pycache__" not in file.parts
    }
    layers = {f"sparse_attention/layers/{file.name}" for file in clone.glob("layers/*.py")}
    return root | layers | engine | {"sparse_attention/py.typed"}


def wheel_files(source, folder):
    pip_wheel = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, source]
    subprocess.run(pip_wheel, check=True)
    (wheel,) = folder.glob("*.whl")
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def test_wheel_holds_exactly_the_packages(clone, tmp_path):
    files = wheel_files(clone, tmp_path)
    assert files == expected_files(clone)
    assert {"sparse_attention/attention.py", "blocksparse/__init__.py"} <= files


def test_source_archive_builds_the_same_wheel(clone, tmp_path):
    build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, tmp_path], cwd=clone, check=True)
    (archive,) = tmp_path.iterdir()
    with tarfile.open(archive) as tar:
        assert not [name for name in tar.getnames() if name.endswith(("scratch.py", "conftest.py"))]
    assert wheel_files(archive, tmp_path) == expected_files(clone)


@pytest.fixture(scope="module")
def wheels():
    """.ci/wheels.py, which is a script beside the packages."""
    spec = importlib.util.spec_from_file_location("wheels", ROOT / ".ci" / "wheels.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:  # a script's own settings of its process
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        patch.setattr(sys, "path", [*sys.path])
        spec.loader.exec_module(module)
    return module


def test_the_kernels_of_a_wheel_stay_below_its_limit(wheels):
    """By what one kernel takes in a wheel; the script refuses a wheel that is larger."""
    names = wheels.keys_of(wheels.CAPABILITIES)
    kernels = sum(len(manifest.launches(name)) for name in names)
    assert 600 < kernels and kernels * wheels.KERNEL_BYTES + wheels.OPS_BYTES < wheels.MOST_BYTES
    assert {parse(name).capability for name in names} == {70, 75, 80, 90, 100, 120}


def test_a_wheel_is_of_committed_files_alone(wheels, clone, monkeypatch):
    monkeypatch.setattr(wheels, "ROOT", clone)
    with pytest.raises(
        SystemExit, match=r"changes that are not committed \(\?\? \S+ \.\.\.\): .* Commit, stash or remove"
    ):
        wheels.refuse_changes()


@pytest.mark.thorough
def test_a_wheel_with_built_files_needs_no_compiler(tmp_path):
    """The ops alone: the GPU kernels that `make wheels` adds take long to compile."""
    out, place = tmp_path / "out", tmp_path / "place"
    subprocess.run([sys.executable, ROOT / ".ci" / "wheels.py", out, "--capabilities"], check=True)
    (wheel,) = out.iterdir()
    assert "+tf2." in wheel.name and wheel.name.endswith("-py3-none-linux_x86_64.whl")
    names = [Path(name).name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")]
    assert sorted(name.split("-")[0] for name in names) == ["cpu", "cpu", "cpu", "gpu", "xla"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", place, wheel], check=True
    )
    warnings = "error:blocksparse runs in plain TensorFlow:RuntimeWarning"
    nothing = dict(CXX="not-here", PATH="", HOME=str(tmp_path), PYTHONWARNINGS=warnings)
    table = [sys.executable, "-m", "sparse_attention.attention", "--batch", "1"]
    done = subprocess.run(
        table,
        cwd=tmp_path,
        env=nothing | {"PYTHONPATH": str(place)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.count(" cpu\n") == 8 and "reference" not in done.stdout
    assert not (tmp_path / ".cache" / "blocksparse").exists()
