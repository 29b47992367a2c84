"""What users import and type: names, signatures, the command, and one copy of each module in a process."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import sparse_attention
from blocksparse.plan import modes, patterns, pictures
from sparse_attention import attention, compare, recompute, utils

ROOT = Path(__file__).parents[2]
PATTERN = "local_attn_ctx=None, blocksize=32, num_verts=None, vertsize=None"
RUN = "recompute=False, causal=True, kv_heads=None, segment_ids=None, lengths=None, max_time=8192"
SIGNATURES = {
    "attention_impl": f"(q, k, v, heads, attn_mode, {PATTERN}, {RUN})",
    "blocksparse_attention_impl": f"(q, k, v, heads, attn_mode, {PATTERN}, {RUN})",
    "get_attn_mask": f"(n, attn_mode, {PATTERN}, causal=True)",
    "get_blocksparse_obj": "(n_ctx, n_heads, attn_mode, blocksize=32, local_attn_ctx=None, num_verts=4, vertsize=1, "
    "causal=True)",
    "get_callback": f"(attn_mode, {PATTERN}, causal=True)",
    "merge_heads": "(x)",
    "merge_states": "(x)",
    "recomputable": "(function)",
    "shape_list": "(x)",
    "split_heads": "(x, n)",
    "split_states": "(x, n)",
    "strided_transpose": "(x, n_ctx, local_attn_ctx, blocksize)",
}

OURS = {"DecodeStep", "Pattern", "SparseSelfAttention", "SparseTransformerBlock", "__version__", "from_mask"}


def bare(function):
    """The signature without its annotations."""
    signature = inspect.signature(function)
    parameters = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=parameters, return_annotation=signature.empty))


def test_public_names_and_signatures_are_frozen():
    assert set(sparse_attention.__all__) == {*SIGNATURES, *OURS}
    assert {name: bare(getattr(sparse_attention, name)) for name in SIGNATURES} == SIGNATURES
    assert sorted(dir(sparse_attention)) == sorted(sparse_attention.__all__)
    assert bare(sparse_attention.from_mask).startswith("(sees, query_time")
    with pytest.raises(AttributeError, match="no attribute 'attention_imp'"):
        sparse_attention.attention_imp  # noqa: B018


def test_openais_names_are_where_openai_has_them():
    for name in set(SIGNATURES) - {"recomputable"}:
        assert hasattr(attention, name), name
    for name in ("shape_list", "recomputable"):
        assert hasattr(utils, name) and hasattr(attention, name)


def test_every_public_function_says_what_it_does():
    for module in (attention, compare, modes, patterns, recompute, utils):
        for name, thing in vars(module).items():
            if inspect.isfunction(thing) and thing.__module__ == module.__name__ and not name.startswith("_"):
                assert thing.__doc__, f"{module.__name__}.{name}"


def test_old_import_paths_work():
    python("-c", "from sparse_attention.patterns import MODES, Pattern, causal, head_modes, local, strided")
    python(
        "-c",
        "from blocksparse.transformer import BlocksparseTransformer, clear_bst_constants, transpose_0213",
    )


def python(*arguments, code=0, **options):
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


LOADED = """
import sys
modules = {{id(module): module for module in list(sys.modules.values())}}.values()  # __mp_main__ is __main__
files = [file for file in (getattr(module, "__file__", None) for module in modules) if file]
files = [file for file in files if file.startswith({root!r}) and "site-packages" not in file]
assert len(files) == len(set(files)), sorted(files)
"""


def test_importing_the_package_loads_nothing_heavy():
    heavy = "{'tensorflow', 'triton', 'blocksparse'}"
    python("-c", f"import sys, sparse_attention; assert not {heavy} & sys.modules.keys()")


def test_the_checkout_serves_openais_imports():
    program = (
        "from attention import attention_impl, get_callback",
        "from utils import shape_list, recomputable",
    )
    python("-c", "\n".join(program) + LOADED.format(root=str(ROOT)), cwd=ROOT)


SMALL = "--n-ctx 128 --batch 1 --n-embd 32 --heads 2 --blocksize 8 --local-attn-ctx 8".split()


@pytest.mark.parametrize("command", [["attention.py"], ["-m", "sparse_attention.attention"]])
def test_the_command_prints_a_line_for_every_pattern(command, tmp_path):
    probe = tmp_path / "sitecustomize.py"
    probe.write_text(
        "import atexit\natexit.register(lambda: exec(" + repr(LOADED.format(root=str(ROOT))) + "))"
    )
    figure = tmp_path / "figure.png"
    done = python(
        *command, *SMALL, "fp16", "--plot", figure, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(tmp_path)}
    )
    lines = done.stdout.splitlines()
    assert lines[0].startswith("attention 1 x 128 x 32, 2 heads, float16, on ")
    assert lines[1].startswith("TensorFlow ")
    rows = lines[4:12]
    assert [row[:14].strip() for row in rows] == [
        "all",
        "local",
        "strided",
        "chunk",
        "summary",
        "fixed",
        "local+strided",
        "local, strided",
    ]
    assert len({len(line) for line in lines[3:12]}) == 1, "columns are not aligned"
    assert "100.00%" in rows[0] and all(row.split()[-1] in ("cpu", "gpu", "reference") for row in rows)
    unwanted = "Error|Warning(?!: blocksparse runs in plain TensorFlow)|retracing|absl::|oneDNN"
    assert not re.search(unwanted, done.stderr), done.stderr
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_the_command_fails_when_a_pattern_disagrees(capsys):
    def wrong(q, k, v, heads, attn_mode, **pattern):
        out = attention.blocksparse_attention_impl(q, k, v, heads, attn_mode, **pattern)
        return out * 1.01 if attn_mode == "strided" else out

    assert compare.main(attention.attention_impl, wrong, SMALL) == 1
    assert capsys.readouterr().out.rstrip().endswith("FAILED, beyond what is allowed: strided")


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["--heads", "0"], "argument --heads: '0' is no positive number"),
        (["--blocksize", "10"], "blocksize=10 is not offered; use one of (8, 16, 32, 64, 128) (nearest: 8)"),
        (["--plot", "figure.nonsense"], "Format 'nonsense' is not supported"),
    ],
)
def test_the_command_refuses_in_words(arguments, text, capsys):
    with pytest.raises(SystemExit) as caught:
        compare.main(attention.attention_impl, attention.blocksparse_attention_impl, [*SMALL, *arguments])
    assert caught.value.code == 2
    assert text in capsys.readouterr().err


def test_a_missing_matplotlib_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"--plot needs matplotlib: pip install 'sparse_attention\[plot\]'"):
        compare.draw_connectivity("figure.png")


def test_the_figure_has_the_papers_cells():
    """Cells of 16 outputs by 16 inputs, l = 4, of each kind; below the diagonal alone those that heads see."""
    below = np.tri(16, k=-1, dtype=bool)
    kinds = (pictures.UNSEEN, pictures.EVERY_HEAD, pictures.FIRST, pictures.SECOND, pictures.QUERY)
    counts = ([120, 120, 0, 0, 16], [174, 0, 42, 24, 16], [192, 0, 24, 24, 16])
    for drawn, wanted in zip(pictures.FIGURE_3.values(), counts, strict=True):
        picture = pictures.cells(drawn, 16, 4)
        assert (picture.diagonal() == pictures.QUERY).all()
        assert [(picture == kind).sum() for kind in kinds] == wanted
        assert (picture[~below & ~np.eye(16, dtype=bool)] == pictures.UNSEEN).all()


def test_every_mode_is_drawn_as_the_table_says(tmp_path):
    i, j = np.arange(12)[:, None], np.arange(12)
    past, chunk, strided = j <= i, i // 4 == j // 4, (i - j) % 4 == 0
    heads = {
        "all": (past, past),
        "local": (i - j < 4, i - j < 4),
        "strided": (strided, strided),
        "chunk": (chunk, chunk),
        "previous": (i // 4 == j // 4 + 1, i // 4 == j // 4 + 1),
        "summary": (j % 4 == 3, j % 4 == 2),
        "fixed": (chunk | (j % 4 == 3), chunk | (j % 4 == 2)),
        "prefix": (past | (j < 4), past | (j < 4)),
        "local+strided": ((i - j < 4) | strided, (i - j < 4) | strided),
        ("local", "strided"): (i - j < 4, strided),
    }
    assert list(heads) == list(pictures.MODES)
    for mode, (first, second) in heads.items():
        picture = pictures.two_heads(mode, 12, 4)
        if mode != "prefix":
            first, second = first & past, second & past
        np.testing.assert_array_equal(picture == pictures.FUTURE, ~past & ~first & ~second)
        for seen, own in ((first, pictures.FIRST), (second, pictures.SECOND)):
            np.testing.assert_array_equal(np.isin(picture, (own, pictures.EVERY_HEAD)), seen)
    figure = pictures.every_mode(12, 4)
    figure.savefig(tmp_path / "modes.png")
    assert len(figure.axes) == len(pictures.MODES) and len(figure.legends) == 1
