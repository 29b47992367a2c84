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
    "decode_groups",
    "patterns",
    "recompute",
    "silence",
    "utils",
}
TENSORFLOW = (
    ">=2.18,<2.23"  # of 2.22 there is a release candidate, which pip takes only where it is asked for
)
VERSION = runpy.run_path(str(HERE / "__init__.py"))["__version__"]
PREBUILT = HERE / "blocksparse" / "prebuilt"  # .ci/wheels.py fills it in a clone: ops for one TensorFlow


class BuildPy(build_py):
    """Keeps setup.py and other scripts of the repository root out of `sparse_attention`."""

    def find_package_modules(self, package, package_dir):
        modules = super().find_package_modules(package, package_dir)
        return [m for m in modules if package != "sparse_attention" or m[1] in ROOT_MODULES]


COMMANDS = {"build_py": BuildPy}
if PREBUILT.is_dir():
    from setuptools.command.bdist_wheel import bdist_wheel

    class BdistWheel(bdist_wheel):
        """A wheel of machine code for any Python: TensorFlow loads its ops, and no Python does."""

        def finalize_options(self):
            super().finalize_options()
            self.root_is_pure = False

        def get_tag(self):
            return "py3", "none", "linux_x86_64"

    COMMANDS["bdist_wheel"] = BdistWheel
    built_with = (PREBUILT / "tensorflow").read_text()
    VERSION, TENSORFLOW = f"{VERSION}+tf{built_with}", f"=={built_with}"

LINUX = "platform_system == 'Linux' and platform_machine == 'x86_64'"
examples = ["markdown", "matplotlib", "pillow", "scikit-learn", "soundfile", "tqdm"]
triton = f"triton>=3.6,<3.10; {LINUX}"
nvrtc = f"nvidia-cuda-nvrtc-cu12>=12,<13; {LINUX}"  # 13 does not know compute capability 7.0

setup(
    name="sparse_attention",
    version=VERSION,
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
        "blocksparse": ["py.typed", "**/*.h", "**/*.cc", "**/*.cu", "**/*.json", "prebuilt/**"],
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
    cmdclass=COMMANDS,
)
