"""examples/ hold scripts, which find each other as neighbours; so do these tests."""

import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))
