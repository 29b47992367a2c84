"""Import this first to have the examples' package `sparse_transformer`, which no wheel holds: the models measured."""

import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(FOLDER))
