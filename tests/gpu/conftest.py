"""Makes tests/oracle.py importable; fresh processes for tests."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))


@pytest.fixture
def own_kernels():
    """Skips under BLOCKSPARSE_CAPABILITY: how fast an older GPU's kernels are on a newer GPU says nothing."""
    if older := os.environ.get("BLOCKSPARSE_CAPABILITY"):
        pytest.skip(f"the kernels are those of compute capability {int(older) / 10}, the GPU is another")


@pytest.fixture(scope="session")
def cuda_kernels():
    """Whether the kernels in CUDA C++ run here, not Triton's."""
    from blocksparse.gpu import cuda
    from blocksparse.native.cuda import capabilities

    return any(map(cuda.serves, capabilities()))


@pytest.fixture(scope="session")
def library():
    """The functions of the GPU library, which needs a compiler and no GPU."""
    from blocksparse.native import devices
    from blocksparse.native.compiler import BuildError

    try:
        return devices.gpu_library()[1]
    except BuildError as error:
        pytest.skip(str(error))


@pytest.fixture
def fresh_python():
    """run(program, *arguments, **environment): what a process of its own prints."""

    def run(program, *arguments, **environment):
        command = [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)]
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | dict(TF_FORCE_GPU_ALLOW_GROWTH="true", PYTHONPATH=path) | environment
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout.strip()

    return run
