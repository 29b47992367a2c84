"""Every benchmark is a command that explains itself anywhere; the smallest cases of those that need no GPU run."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
COMMANDS = sorted(
    str(path.relative_to(BENCHMARKS))
    for path in BENCHMARKS.rglob("*.py")
    if "__main__" in path.read_text(encoding="utf-8")
)


def python(*words, cwd=ROOT):
    """A process of its own, far from this one's modules; its output."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def program(text):
    """Runs a program that may import `benchmarks`."""
    return python("-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" + textwrap.dedent(text))


def test_the_readme_lists_every_command():
    text = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    assert len(COMMANDS) == 16
    for name in COMMANDS:
        assert f"[{name}]({name})" in text
    for result in (BENCHMARKS / "results").iterdir():
        assert f"(results/{result.name})" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_help(name, tmp_path):
    text = python(BENCHMARKS / name, "--help", cwd=tmp_path)
    assert f"python benchmarks/{name}" in text and "usage:" in text


def test_attention_on_a_cpu_is_checked_and_timed():
    program("""
        from sparse_attention import blocksparse_attention_impl
        from benchmarks.attention import cpu
        from benchmarks.common import cases

        chosen = [cases.over(case, 128) for case in cases.CPU if case.attn_mode != "strided"]
        for row in cpu.compare(None, 1, chosen):
            assert row["error"] < 1e-5 and row["this forward"] > 0 and row["dense backward"] > 0, row
        assert len(cpu.scale(1, 128)["length"]) == 2
        assert cpu.memory_of_a_long_sequence() > 16  # the output alone

        def wrong(*inputs, **pattern):
            return blocksparse_attention_impl(*inputs, **pattern) * 1.001

        try:
            cpu.check(cpu.Side(wrong, chosen[0]))
        except SystemExit as stopped:
            assert "all: wrong by 0.001, relatively; nothing was timed" == str(stopped), stopped
        else:
            raise AssertionError("a wrong result was let through")
    """)


def test_attention_through_tensorflow_is_checked_in_every_dtype():
    program("""
        from benchmarks.attention import through_tensorflow
        from benchmarks.common import cases

        through_tensorflow.device_ms = lambda step, inputs, prepare=None: 1.0
        wanted = "enwik8 fixed c32", "cifar local", "enwik8 all, documents of 1024"
        for case in (cases.over(case, 1024) for case in cases.GPU if case.name in wanted):
            case = cases.replace(case, documents=case.documents and 256)
            for dtype in ("float16", "bfloat16", "float32"):
                row = through_tensorflow.sparse(case, dtype)
                assert row["forward_ms"] == 1.0 and row["relative_error"] > 0, row
            row = through_tensorflow.measured(case, lambda q, k, v: 1.1 * v + 0 * (q + k), "float16")
            assert row["error"] == "wrong answer, not timed" and "forward_ms" not in row, row
    """)


def test_without_tensorflow_plans_tables_and_predicates_are_the_committed_ones(tmp_path):
    program(f"""
        import json, sys
        from pathlib import Path
        import numpy as np
        from benchmarks.attention import gpu, peers
        from benchmarks.common import cases
        from benchmarks.kernels import gpu_tuning
        from blocksparse.gpu import tuning

        committed = json.loads((gpu.RESULTS / "attention_gpu.json").read_text())
        made = gpu.table(committed["rows"])
        for entry, known in zip(made, committed["table"], strict=True):
            for name in ("case", "step", "ms", "peers", "flex_ratio"):
                assert entry[name] == known[name], (entry, known)
            assert 0 < entry["floor"] < entry["ms"]
        shared = json.loads((gpu.RESULTS / "attention_gpu_shared.json").read_text())
        assert len(shared["beside_flex"]) == 10 and gpu.beside_flex(shared["rows"]) == shared["beside_flex"]

        rows = json.loads((gpu.RESULTS / "attention_gpu_kernels.json").read_text())
        gpu_tuning.write(rows, Path({str(tmp_path)!r}) / "table.json")
        known = (tuning.FOLDER / "sm_90.json").read_text()
        assert (Path({str(tmp_path)!r}) / "table.json").read_text() == known
        how = dict(warps=4, stages=4, maxnreg=128, split=False, heaviest_first=False, roles=64, ms=0.01)
        how |= dict(relative_error=1e-4, by_query=[192, 128], by_key=[192, 64])
        for case in sum(gpu_tuning.DENSE.values(), []):
            rows += [dict(case=case, kernel=kernel) | how for kernel in gpu_tuning.NAMES]
        gpu_tuning.write(rows, Path({str(tmp_path)!r}) / "table.json")
        made, known = (json.loads(text) for text in ((Path({str(tmp_path)!r}) / "table.json").read_text(), known))
        dense = [row for row in made["tiles"] if "share" in row]
        assert [row["dim"] for row in dense] == [32, 64] and all(row["by_query"] == [192, 128] for row in dense)
        others = [[row for row in table["tiles"] if "share" not in row] for table in (made, known)]
        assert others[0] == others[1] and len(known["tiles"]) == len(others[1]) + 2
        fresh = [row for row in made["launches"] if row["m"] == 192]
        others = [[row for row in table["launches"] if row["m"] != 192] for table in (made, known)]
        assert len(fresh) == 12 and others[0] == others[1] and len(known["launches"]) == len(others[1]) + 7
        assert len(gpu_tuning.grid()) > len(rows)

        query, key = np.arange(768)[:, None], np.arange(768)
        for case in cases.GPU:
            case = cases.replace(case, documents=case.documents and 96)
            row = np.arange(768) if case.residues == 1 else None
            if row is None:  # FlexAttention gets residue classes one after the other
                case = cases.over(case, 768)
                row = np.arange(768) % (768 // case.residues) * case.residues + np.arange(768) // (768 // case.residues)
            for head in (0, case.heads - 1):
                given = peers.mask_of(case)(0, head, query, key)
                np.testing.assert_array_equal(given, case.sees(head)(row[:, None], row))
        assert "tensorflow" not in sys.modules
    """)


def test_a_variant_of_a_kernel_compiles_without_a_gpu():
    program("""
        from benchmarks.kernels import gpu_kernels
        from benchmarks.common import cases

        sides = dict(by_query=(32, 32), by_key=(32, 32))
        variants = [
            dict(case="cifar strided", kernel="closed", warps=2, stages=1, maxnreg=0, **sides),
            dict(case="cifar strided", kernel="nonsense", warps=2, stages=1, **sides),
        ]
        plans, keys = gpu_kernels.plans_of(variants)
        assert len(plans) == 1 and keys[0] == keys[1]
        (case,) = (case for case in cases.GPU if case.name == "cifar strided")
        key = gpu_kernels.key_of(plans[keys[0]], "backward", "f16", case.dim, case.dim)
        launch = gpu_kernels.launch_of(variants[0], key)
        assert launch.function == "attention_closed_forward" and launch.options["num_warps"] == 2
        cubin, symbol, warps, shared = gpu_kernels.compile_one(launch, 90)
        assert cubin[:4] == b"\\x7fELF" and symbol == launch.function and warps == 2
        how = gpu_kernels.launching(variants[0], launch)
        row = variants[0] | dict(ms=0.05, relative_error=3.0, registers=9, local=0, shared=shared) | how
        assert gpu_kernels.line(row, how).endswith("0.0500 ms  WRONG 3")
    """)


def test_time_over_context(tmp_path):
    out = tmp_path / "context.json"
    python(
        BENCHMARKS / "model/context.py",
        "--longest",
        1024,
        "--longest-dense",
        1024,
        "--repeats",
        1,
        "--out",
        out,
    )
    record = json.loads(out.read_text())
    assert record["milliseconds"].keys() == {"all", "strided", "local", "fixed"} and record["cores"] > 0


def test_memory_by_the_formula(tmp_path):
    lines = python(BENCHMARKS / "model/memory.py", cwd=tmp_path).splitlines()
    assert lines[2] == "| 1,024 text tokens | 1.1 GB | 1.0 GB | 16.8 MB | 16 MB | 1.0 MB |"


def test_scaling_compares_with_one_gpu_at_its_batch_and_at_its_share():
    program("""
        from benchmarks.model import scaling

        plan = [(row.way, row.gpus, row.batch) for row in scaling.rows("enwik8", [1, 2, 4])]
        assert plan == [("one", 1, 8), ("one", 1, 16), ("mirrored", 2, 16), ("workers", 2, 16)] + [
            (way, 4, batch) for way in ("mirrored", "workers") for batch in (16, 32)
        ], plan
        rest = dict(model="enwik8", collective_seconds=0.002)
        rows = [
            dict(way="one", gpus=1, batch=8, seconds=0.5, bits=[8.0, 7.0], **rest),
            dict(way="one", gpus=1, batch=16, seconds=0.9, bits=[8.0, 6.0], **rest),
            dict(way="workers", gpus=2, batch=16, seconds=0.52, bits=[8.0, 6.001], **rest),
        ]
        *_, line = scaling.report(rows).splitlines()
        assert line == "| `enwik8` | workers | 2 | 16 | 0.5200 | 1.923 | 1.731 | 2.00 | 1.0e-03 |", line
    """)


@pytest.mark.thorough
def test_scaling_on_two_devices_of_a_cpu(tmp_path):
    small = (
        "grid=(4, 16)",
        "layers=1",
        "width=32",
        "heads=2",
        "local_attn_ctx=16",
        "num_verts=2",
        "blocksize=8",
    )
    overrides = [word for each in (*small, "precision=float32", "xla=False") for word in ("--override", each)]
    out = tmp_path / "out.json"
    command = BENCHMARKS / "model/scaling.py", "steps", "--cpus", 2, "--models", "enwik8", "--steps", 2
    said = python(*command, "--out", out, *overrides)
    rows = json.loads(out.read_text())["rows"]
    assert [row["status"] for row in rows] == [[0], [0], [0], [0, 0]], said
    alone, *both = (np.array(row["bits"]) for row in rows if row["batch"] == 16)
    for bits in both:
        np.testing.assert_allclose(bits, alone, rtol=1e-6)
    assert all(row["collective_seconds"] > 0 for row in rows if row["gpus"] == 2)


def test_pictures_are_drawn_from_what_is_committed(tmp_path):
    python(BENCHMARKS / "pictures.py", "--out", tmp_path)
    committed = {path.name for path in (BENCHMARKS / "results").glob("*.png")}
    assert {path.name for path in tmp_path.iterdir()} == committed
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.iterdir())
