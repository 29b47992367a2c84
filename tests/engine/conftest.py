"""What the tests of the engine share."""

import pytest

from blocksparse.fused import op


@pytest.fixture(params=["auto", "reference"])
def kernels(request, monkeypatch):
    """Both ways to run; "auto" has to be a compiled kernel."""
    monkeypatch.setenv("BLOCKSPARSE_KERNELS", request.param)
    ran = op.kernel_name()
    if request.param == "auto" and ran == "reference":
        pytest.skip("no C++ compiler")
    assert (ran == "reference") == (request.param == "reference")
    return request.param
