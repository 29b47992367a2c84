"""op_table.py is read by the tests here and by the programs they start."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
