"""Import this first to have blocksparse's NumPy modules in a process that must not hold TensorFlow.

Triton and TensorFlow each bring an LLVM, and a process that holds both aborts; blocksparse's own __init__ imports
TensorFlow.
"""

import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

package = types.ModuleType("blocksparse")
package.__path__ = [str(ROOT / "blocksparse")]
sys.modules["blocksparse"] = package
