"""What all tests share: quiet logs, one name for each module, this folder's oracle, layouts and peak; no GPU, no test
that needs one.
"""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Several test processes share the card. TensorFlow's own call for that comes too late: modules make tensors on import.
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")

ROOT_MODULES = ("attention", "compare", "decode", "layers", "patterns", "recompute", "silence", "utils")


def pytest_collection_modifyitems(items):
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import tensorflow as tf

        if not tf.config.list_physical_devices("GPU"):
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="TensorFlow sees no GPU"))


@pytest.fixture(autouse=True, scope="session")
def exact_float32():
    """A GPU multiplies float32 as TF32 otherwise, which the tolerances of float32 leave no room for."""
    import tensorflow as tf

    tf.config.experimental.enable_tensor_float_32_execution(False)


@pytest.fixture(autouse=True, scope="module")
def one_name_per_module():
    """A root module loaded under two names would be two modules, each with its own caches."""
    yield
    # pytest makes a module without a file of a folder such as tests/attention.
    alone = [name for name in ROOT_MODULES if getattr(sys.modules.get(name), "__file__", None)]
    twice = [name for name in alone if f"sparse_attention.{name}" in sys.modules]
    assert not twice, f"loaded by two names in one process: {twice}; import them from sparse_attention"
