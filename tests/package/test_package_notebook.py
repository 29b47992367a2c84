"""examples/quickstart.ipynb runs from top to bottom, in a fresh Python and shortened, and shows what it gave before."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

NOTEBOOK = Path(__file__).parents[2] / "examples/quickstart.ipynb"
SHORT = {"QUICKSTART_STEPS": "4", "QUICKSTART_LENGTH": "12", "MPLBACKEND": "Agg"}


def code_cells():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_cells_run_in_order(tmp_path):
    script = tmp_path / "quickstart.py"
    script.write_text("\n".join("".join(cell["source"]) for cell in code_cells()))
    run = subprocess.run(
        [sys.executable, script], env={**os.environ, **SHORT}, cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert "largest difference below 1e-5: True" in run.stdout
    bits = [float(found) for found in re.findall(r"step \d+: (\d+\.\d+) bits", run.stdout)]
    assert len(bits) == 4 and bits[-1] < bits[0]
    assert "import " in run.stdout.splitlines()[-1]


def test_outputs_are_committed_and_small():
    outputs = [output for cell in code_cells() for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert [cell["execution_count"] for cell in code_cells()] == list(range(1, len(code_cells()) + 1))
    assert NOTEBOOK.stat().st_size < 200_000
