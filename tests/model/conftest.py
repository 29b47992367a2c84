"""Tests import the commands of examples/, and their package, as neighbours; so do the commands."""

import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory):
    """A run of eight steps that nothing disturbed."""
    from training_runs import STEPS, run, train_command

    out = tmp_path_factory.mktemp("unbroken")
    output = run(train_command(out, STEPS))
    assert "windows on held-out data (the split valid), with averaged weights" in output
    out.with_suffix(".said").write_text(output)
    return out
