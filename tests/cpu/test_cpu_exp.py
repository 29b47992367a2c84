"""The exponential of the CPU kernels against the C library's in float64, over its whole range."""

import shutil
import subprocess
from pathlib import Path

import pytest

VECTOR = Path(__file__).resolve().parents[2] / "blocksparse/cpu/vector.h"
PROGRAM = """
#include <cmath>
#include <cstdio>
using namespace blocksparse;

int main() {
  double worst = 0;  // in units of what vector.h states
  for (uint32_t bits = 0x80000000; bits < 0xc2ae0000; bits += 101 * kLanes) {  // -0 .. -87, every 101st number
    Words words;
    for (int lane = 0; lane < kLanes; ++lane) words[lane] = bits + 101 * lane;
    const Vec x = (Vec)words, y = exp(x);
    for (int lane = 0; lane < kLanes; ++lane) {
      const double error = std::abs(y[lane] / std::exp(double(x[lane])) - 1) * (1 << 23);
      worst = std::fmax(worst, error / (1 + std::abs(x[lane]) / 8));
    }
  }
  const float ends[] = {0.0f, -88.0f, -kInfinity, NAN};
  std::printf("%g", worst);
  for (const float x : ends) std::printf(" %g", exp(broadcast(x))[0]);
}
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.parametrize(
    "fused, flags, most", [(True, ("-mavx2", "-mfma"), 1.0), (False, ("-msse4.2",), 5.0)]
)
def test_exp_has_the_error_it_states(tmp_path, fused, flags, most):
    if fused and " fma " not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this processor has no fused multiply-add")
    program = tmp_path / "exp"
    command = ["g++", "-O3", "-w", *flags, "-include", VECTOR, "-x", "c++", "-", "-o", program]
    subprocess.run(command, input=PROGRAM, text=True, check=True)
    worst, *ends = subprocess.run([program], capture_output=True, text=True, check=True).stdout.split()
    assert 0 < float(worst) <= most
    assert ends == ["1", "0", "0", "nan"]
