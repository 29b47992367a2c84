"""Packages `sparse_attention` (the modules beside this file) and `blocksparse` (the engine)."""

import runpy
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
ROOT_MODULES = {
    "__init__",
    "attention",
    "compare",
    "decode",
    "patterns",
    "recompute",
    "silence",
    "utils",
}
TENSORFLOW = (
    ">=2.18,<2.23"  # of 2.22 there is a release candidate, which pip takes only where it is asked for
)


class BuildPy(build_py):
    """Keeps setup.py and other scripts of the repository root out of `sparse_attention`."""

    def find_package_modules(self, package, package_dir):
        modules = super().find_package_modules(package, package_dir)
        return [m for m in modules if package != "sparse_attention" or m[1] in ROOT_MODULES]


LINUX = "platform_system == 'Linux' and platform_machine == 'x86_64'"
examples = ["markdown", "matplotlib", "pillow", "scikit-learn", "soundfile", "tqdm"]
triton = f"triton>=3.6,<3.10; {LINUX}"
nvrtc = f"nvidia-cuda-nvrtc-cu12>=12,<13; {LINUX}"  # 13 does not know compute capability 7.0

setup(
    name="sparse_attention",
    version=runpy.run_path(str(HERE / "__init__.py"))["__version__"],
    description="Sparse Transformer attention for TensorFlow 2, on a block-sparse engine for any CPU or GPU",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="sparse_attention authors",
    license="MIT",
    python_requires=">=3.10,<3.15",  # 3.14 from TensorFlow 2.22 on
    packages=[
        "sparse_attention",
        "sparse_attention.layers",
        *find_packages(include=["blocksparse", "blocksparse.*"]),
    ],
    package_dir={"sparse_attention": "."},
    package_data={
        "sparse_attention": ["py.typed"],
        "blocksparse": ["py.typed", "**/*.h", "**/*.cc", "**/*.cu", "**/*.json"],
    },
    install_requires=["tensorflow" + TENSORFLOW, "numpy>=2.0", "scipy>=1.13"],
    extras_require={
        "gpu": ["tensorflow[and-cuda]" + TENSORFLOW, triton, nvrtc],
        "plot": ["matplotlib"],
        "examples": examples,
        "docs": ["mkdocs-material>=9.5", "mkdocstrings[python]>=0.26"],
        "test": [
            *examples,
            triton,
            nvrtc,
            "clang-format==23.*",
            "hypothesis",
            "mypy",
            "pytest",
            "pytest-xdist",
            "ruff",
            "setuptools>=68",
        ],
    },
    cmdclass={"build_py": BuildPy},
)
