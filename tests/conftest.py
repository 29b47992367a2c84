"""What every test shares. Tests import `sparse_attention` and `blocksparse` as installed (`pip install -e .`)."""

import os
import sys

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@pytest.fixture(autouse=True, scope="module")
def one_name_per_module():
    """A root module loaded under two names would register its gradients twice."""
    yield
    twice = [m for m in ("attention", "recompute", "utils") if {m, f"sparse_attention.{m}"} <= sys.modules.keys()]
    assert not twice, f"loaded both as themselves and from sparse_attention: {twice}"
