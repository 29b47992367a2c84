"""What users' tools see of the package: types through the lazy names, dir(), the version."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import sparse_attention

ROOT = Path(__file__).parents[2]
PROGRAM = """\
import sparse_attention
from sparse_attention import DecodeStep, SparseSelfAttention, blocksparse_attention_impl, from_mask

reveal_type(blocksparse_attention_impl)
reveal_type(SparseSelfAttention)
reveal_type(DecodeStep)
reveal_type(from_mask)
reveal_type(sparse_attention.__version__)
blocksparse_attention_impl(1, 2, 3, heads="four", attn_mode="all")
"""
# A user's, but for other packages, which would be read for minutes.
SETTINGS = """\
[mypy]
ignore_missing_imports = true
follow_imports = silent
[mypy-numpy.*,scipy.*,keras.*,tensorflow.*]
follow_imports = skip
"""


def test_mypy_sees_signatures_through_the_lazy_names(tmp_path):
    (tmp_path / "sparse_attention").symlink_to(ROOT)
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "mypy.ini").write_text(SETTINGS)
    command = [sys.executable, "-m", "mypy", "program.py"]
    path = {"MYPYPATH": f"{tmp_path}:{ROOT}"}
    seen = subprocess.run(command, cwd=tmp_path, env={**os.environ, **path}, capture_output=True, text=True)
    signature, layer, step, helper, number, error = [
        line for line in seen.stdout.splitlines() if line.startswith("program.py")
    ]
    assert "heads: int, attn_mode: str | typing.Sequence[str]" in signature.replace(
        "collections.abc", "typing"
    )
    # Without stubs of TensorFlow its tensors are Any.
    settings = signature.split("attn_mode")[1].split("segment_ids")[0]
    assert "blocksize: int =" in settings and "kv_heads: int | None =" in settings and "Any" not in settings
    assert (
        "def (heads: int | None =, attn_mode: str" in layer
        and "-> sparse_attention.layers.self_attention.SparseSelfAttention" in layer
    )
    assert "-> sparse_attention.decode.DecodeStep" in step
    assert "query_time: int, key_time: int, heads: int, block_size: int =" in helper
    assert number.endswith('"str"')
    assert 'Argument "heads" to "blocksparse_attention_impl" has incompatible type "str"' in error


def test_dir_shows_what_is_public():
    names = dir(sparse_attention)
    assert names == sorted(names) and set(names) == set(sparse_attention.__all__)
    assert {"SparseSelfAttention", "DecodeStep", "blocksparse_attention_impl", "from_mask"} <= set(names)
    for name in names:
        assert getattr(sparse_attention, name) is not None


def test_one_version():
    assert sparse_attention.__version__ == version("sparse_attention")


def test_importing_the_package_alone_loads_no_tensorflow():
    code = "import sys, sparse_attention; dir(sparse_attention); sys.exit('tensorflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
