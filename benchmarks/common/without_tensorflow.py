"""Import this first to have blocksparse's NumPy modules in a process that must not hold TensorFlow."""

import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

package = types.ModuleType("blocksparse")  # its own __init__ would import TensorFlow
package.__path__ = [str(ROOT / "blocksparse")]
sys.modules["blocksparse"] = package
