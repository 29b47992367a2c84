"""Importing blocksparse is all that a SavedModel needs on a machine that never ran it."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from blocksparse.native import cache, libraries

ROOT = Path(__file__).parents[2]
SAVE = """
    import sys, tensorflow as tf
    from sparse_attention import blocksparse_attention_impl

    module = tf.Module()
    attend = lambda x: blocksparse_attention_impl(x, x, x, 2, "local", 16, 16)
    module.attend = tf.function(attend, [tf.TensorSpec([None, 64, 16])])
    tf.saved_model.save(module, sys.argv[1])
"""
LOAD = """
    import sys, tensorflow as tf, blocksparse

    print(tf.saved_model.load(sys.argv[1]).attend(tf.ones([3, 64, 16])).shape)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    python(SAVE, path)
    return path


@pytest.fixture
def compiler(tmp_path):
    """A compiler that is quick, since it hands out what the real one made: counts what it links."""
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    path = tmp_path / "quick-g++"
    built = cache.shared_object(libraries.CPU)
    path.write_text(
        f'#!/bin/sh\ncase "$*" in *-shared*) echo x >> {tmp_path}/count;; esac\n'
        f'until [ "$1" = -o ] || [ $# = 0 ]; do shift; done\n[ $# = 0 ] || cp {built} "$2"\n'
    )
    path.chmod(0o755)
    return path


def python(text, *arguments, **environment):
    """The process's standard output and error."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "BLOCKSPARSE_KERNELS": "auto", **environment}
    command = [sys.executable, "-c", textwrap.dedent(text), *map(str, arguments)]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True)


def test_importing_builds_once_and_says_so(model, compiler, tmp_path):
    environment = {"CXX": str(compiler), "BLOCKSPARSE_CACHE": str(tmp_path / "cache")}
    first, second = (python(LOAD, model, **environment) for _ in range(2))
    assert first.stdout == second.stdout == "(3, 64, 16)\n"
    assert first.stderr.count("blocksparse: compiling its cpu library, once") == 1
    assert "blocksparse" not in second.stderr and (tmp_path / "count").read_text() == "x\n"


def test_importing_without_a_compiler_is_silent(tmp_path):
    environment = {"CXX": "nowhere/g++", "BLOCKSPARSE_CACHE": str(tmp_path)}
    assert "blocksparse" not in python("import blocksparse", **environment).stderr
