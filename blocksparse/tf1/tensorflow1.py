"""`import tensorflow` in a program for TensorFlow 1.

Who imports decides: the program's files get compat.v1, everybody else the TensorFlow that is installed.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import logging
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import tensorflow as tf
from tensorflow.python.client import session

ENGINE = Path(__file__).resolve().parents[1]
_WRITE = "write what it computes by tf.get_variable and tf.matmul"
GONE = {
    "contrib": "TensorFlow 2 dropped it: take layer_norm, AdafactorOptimizer and their like from blocksparse, copy "
    "other functions into the program",
    "estimator": "TensorFlow dropped it in 2.16: run the model's training operation in a session of the program's own",
    "examples": "TensorFlow 2 dropped it: read the data in the program",
    "layers": f"it went with Keras 2: {_WRITE}, or install tf_keras and set TF_USE_LEGACY_KERAS=1",
}


def provide(program: Path) -> None:
    """From here on `program` and the modules beside it get TensorFlow 1 from their imports."""
    log = logging.getLogger("tensorflow")
    level = log.level
    log.setLevel(logging.ERROR)  # two warnings about the switch itself
    tf.compat.v1.disable_v2_behavior()
    log.setLevel(level)
    if find_spec("tf_keras"):
        GONE.pop("layers", None)
    _place_softly()
    _answer_imports(Tensorflow1(), _Program(program))


class Tensorflow1(ModuleType):
    """The module `tensorflow` as the program sees it: compat.v1, and words for what is gone."""

    def __init__(self):
        super().__init__("tensorflow", tf.compat.v1.__doc__)
        self.__path__ = tf.__path__  # of a package: `import tensorflow.python.ops` is right
        self.__version__ = tf.__version__
        self.__all__ = [name for name in dir(tf.compat.v1) if not name.startswith("_") and name not in GONE]

    def __getattr__(self, name: str):
        if name in GONE:
            raise AttributeError(f"tensorflow.{name} is gone: {GONE[name]}")
        if hasattr(tf.compat.v1, name):
            return getattr(tf.compat.v1, name)
        if f"tensorflow.{name}" in sys.modules:  # such as `python`, after import tensorflow.python.ops
            return sys.modules[f"tensorflow.{name}"]
        raise AttributeError(f"module 'tensorflow' has no attribute {name!r}, in version 1 neither")

    def __dir__(self):
        return self.__all__


class _Program:
    """Which modules are the program's: all but Python's, installed ones and this project's."""

    def __init__(self, program: Path):
        self.program = program.resolve()
        folders = map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib"))
        self.libraries = {ENGINE, *(Path(folder).resolve() for folder in folders if folder)}

    def holds(self, names: dict) -> bool:
        """Whether code with these global names is the program's."""
        file = names.get("__file__")
        if names.get("__name__", "").partition(".")[0] == "sparse_attention":
            return False
        return self._holds_file(file) if file else names.get("__name__") == "__main__"

    @functools.cache  # noqa: B019  (one object a process)
    def _holds_file(self, file: str) -> bool:
        path = Path(file).resolve()
        if path == self.program:
            return True
        ours = (
            path.parent == ENGINE.parent
        )  # attention.py and its like, imported as top-level modules of a checkout
        installed = {"site-packages", "dist-packages"}.intersection(path.parts)
        return not (ours or installed or self.libraries.intersection(path.parents))


def _answer_imports(tensorflow1: Tensorflow1, program: _Program) -> None:
    usual, usual_module = builtins.__import__, importlib.import_module

    def import_(name, globals=None, locals=None, fromlist=(), level=0):
        inside = level == 0 and name.partition(".")[0] == "tensorflow"
        if not (inside and program.holds(globals or sys._getframe(1).f_globals)):
            return usual(name, globals, locals, fromlist, level)
        _refuse([name.partition(".")[2]] if name != "tensorflow" else fromlist or ())
        module = usual(name, globals, locals, fromlist, level)
        return module if fromlist and name != "tensorflow" else tensorflow1

    def import_module(name, package=None):
        if name == "tensorflow" and program.holds(sys._getframe(1).f_globals):
            return tensorflow1
        return usual_module(name, package)

    builtins.__import__, importlib.import_module = import_, import_module


def _refuse(names) -> None:
    for name in names:
        first = name.partition(".")[0]
        if first in GONE:
            raise ModuleNotFoundError(
                f"tensorflow.{first} is gone: {GONE[first]}", name=f"tensorflow.{first}"
            )


def _place_softly() -> None:
    """Sessions of every kind put operations on the CPU where the device they name is not there, or cannot do them."""
    usual = session.BaseSession.__init__

    @functools.wraps(usual)
    def init(self, target="", graph=None, config=None):
        if isinstance(config, tf.compat.v1.ConfigProto):
            given, config = config, tf.compat.v1.ConfigProto()
            config.CopyFrom(given)
            config.allow_soft_placement = True
        usual(self, target, graph, config)

    session.BaseSession.__init__ = init
    tf.config.set_soft_device_placement(True)  # of sessions without a configuration
