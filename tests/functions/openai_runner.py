"""Runs a program written for TensorFlow 1 and OpenAI's blocksparse, unedited: `openai_runner.py PROGRAM ARGUMENTS`,
and again in a new graph for each `+ ARGUMENTS`.

In the program's folder `import tensorflow` means tensorflow.compat.v1; mpi4py has one rank; np.fromstring
reads bytes again; on a machine without a GPU "/gpu:0" is its CPU. Nothing of the program, of its modules or
of blocksparse is replaced.
"""

import builtins
import os
import runpy
import sys
import types
import warnings
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

import blocksparse  # noqa: F401  (before the program can shadow a name of it)


class OneRank:
    """MPI.COMM_WORLD of a program started without mpirun."""

    def Get_size(self):
        return 1

    def Get_rank(self):
        return 0

    def Barrier(self):
        pass


def provide_mpi4py():
    package, mpi = types.ModuleType("mpi4py"), types.ModuleType("mpi4py.MPI")
    package.MPI, mpi.COMM_WORLD = mpi, OneRank()
    sys.modules.update({"mpi4py": package, "mpi4py.MPI": mpi})


def provide_fromstring():
    of_text = np.fromstring

    def fromstring(string, dtype=float, count=-1, sep="", **more):
        if sep:
            return of_text(string, dtype, count, sep=sep, **more)
        data = string.encode() if isinstance(string, str) else string
        return np.frombuffer(data, dtype, count).copy()

    np.fromstring = fromstring


def provide_tensorflow_1(folder):
    tf.compat.v1.disable_v2_behavior()
    usual = builtins.__import__

    def importer(name, globals=None, locals=None, fromlist=(), level=0):
        module = usual(name, globals, locals, fromlist, level)
        of_program = folder in Path((globals or {}).get("__file__") or "/").resolve().parents
        return tf.compat.v1 if of_program and name == "tensorflow" else module

    builtins.__import__ = importer


def provide_gpu():
    device = tf.compat.v1.device
    if not tf.config.list_physical_devices("GPU"):
        tf.compat.v1.device = lambda name: device("/cpu:0" if name == "/gpu:0" else name)


def main(program, *arguments):
    program = Path(program).resolve()
    warnings.simplefilter("ignore", DeprecationWarning)
    provide_mpi4py()
    provide_fromstring()
    provide_tensorflow_1(program.parent)
    provide_gpu()
    sys.path[0] = str(program.parent)
    for run in " ".join(arguments).split("+"):
        tf.compat.v1.reset_default_graph()
        sys.argv = [str(program), *run.split()]
        runpy.run_path(str(program), run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
