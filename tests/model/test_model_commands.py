"""Command lines: what is wrong with one is said at once, in a sentence, before anything is written."""

import json
import os
import runpy
import subprocess
import sys

import pytest
from sparse_transformer.command import choose_products
from training_runs import EXAMPLES

COMMANDS = ("train", "evaluate", "sample", "plot", "export", "enwik8", "tf1_graph")


def command(name, *arguments, cwd=None, **env):
    return subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def started():
    """Seconds of processor time that Python itself and NumPy take to start here."""
    return seconds_of([sys.executable, "-c", "import numpy"])


def seconds_of(words):
    """Of the processor, as other processes may share it."""
    before = os.times()
    subprocess.run(list(map(str, words)), capture_output=True, timeout=120)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


@pytest.mark.parametrize("name", COMMANDS)
def test_help_comes_before_tensorflow(name, started):
    assert seconds_of([sys.executable, EXAMPLES / f"{name}.py", "--help"]) < min(2, started + 0.7)
    result = command(name, "--help")
    assert result.returncode == 0 and result.stdout.startswith("usage: ") and not result.stderr


ANYWHERE = [
    ("train", ["enwik8_small", "--steps", "0"], r"argument --steps: '0' is no whole number of at least 1"),
    ("train", ["enwik8_small", "--steps", "-5"], r"argument --steps: '-5' is no whole number of at least 1"),
    ("train", ["enwik9"], "argument CONFIG: invalid choice: 'enwik9'"),
    ("train", ["enwik8_small", "--override", "layers=three"], "override layers=three: layers is a whole number, not"),
    ("train", ["enwik8_small", "--override", "layers=0"], "layers=0: it has to be at least 1"),
    ("train", ["enwik8_small", "--override", "dropout=1"], "dropout=1: it has to be at least 0 and less than 1"),
    ("train", ["enwik8_small", "--override", "xla=maybe"], "--override xla=maybe: xla is True or False, not 'maybe'"),
    ("train", ["enwik8_small", "--override", "layers=True"], "layers is a whole number, not 'True'"),
    ("train", ["enwik8_small", "--override", "learning_rate=nan"], "learning_rate is a finite number, not 'nan'"),
    ("train", ["enwik8_small", "--override", "grid=64"], "grid is a tuple of whole numbers, such as (16, 32), not"),
    ("train", ["enwik8_small", "--override", "grid=(4, 'a')"], "grid is a tuple of whole numbers"),
    ("train", ["enwik8_small", "--override", "grid=(0, 16)"], "grid=(0, 16): it has to be of numbers that are at"),
    ("train", ["cifar10_small", "--override", "grid=(32, 16, 3)"], "an image's is (side, side, 3)"),
    ("train", ["enwik8_small", "--override", "data=video"], "data='video': choose one of text, cifar10"),
    ("train", ["enwik8_small", "--override", "precision=float8"], "precision='float8': choose one of float32"),
    ("train", ["enwik8_small", "--override", "seed=-1"], "seed=-1: it has to be between 0 and 2^32 - 1"),
    ("train", ["enwik8_small", "--data", "none/enwik8"], "train.py: none/enwik8: no such file. Wanted: a text file"),
    ("evaluate", ["none"], "evaluate.py: none holds no run (no config.json); train one with examples/train.py CONFIG"),
    ("evaluate", ["none", "--limit", "0"], "argument --limit: '0' is no whole number of at least 1"),
    ("evaluate", ["none", "--shift", "8", "--limit", "3"], "evaluate.py: --limit 3: --shift scores all"),
    ("evaluate", ["none", "--batch", "0"], "argument --batch: '0' is no whole number of at least 1"),
    ("evaluate", ["none", "--min-context", "-1"], "argument --min-context: '-1' is no whole number of at least 0"),
    ("sample", ["none"], "sample.py: none holds no run"),
    ("sample", ["none", "--count", "0"], "argument --count: '0' is no whole number of at least 1"),
    ("sample", ["none", "--length", "0"], "argument --length: '0' is no whole number of at least 1"),
    ("sample", ["none", "--temperature", "-1"], "argument --temperature: '-1' is no number of at least 0"),
    ("sample", ["none", "--temperature", "nan"], "argument --temperature: 'nan' is no number of at least 0"),
    ("sample", ["none", "--top-p", "2"], "argument --top-p: '2' is no number of at least 0 and at most 1"),
    ("sample", ["none", "--seconds", "-1"], "argument --seconds: '-1' is no number of at least 0"),
    ("sample", ["none", "--seed", "99999999999"], "argument --seed: '99999999999' is no whole number"),
    ("plot", ["curves", "none", "--smooth", "0"], "argument --smooth: '0' is no whole number of at least 1"),
    ("plot", ["attention", "none", "--layers", "-1"], "argument --layers: '-1' is no whole number of at least 0"),
    ("plot", ["attention", "none"], "plot.py: none holds no run"),
    ("export", ["none"], "export.py: none holds no run"),
    ("enwik8", ["--date", "x"], "unrecognized arguments: --date x"),
    ("tf1_graph", ["x"], "unrecognized arguments: x"),
]  # fmt: skip


@pytest.mark.parametrize("name, arguments, message", ANYWHERE, ids=lambda value: "")
def test_what_is_wrong_is_said_at_once(name, arguments, message, tmp_path):
    result = command(name, *arguments, cwd=tmp_path)
    assert result.returncode in (1, 2) and "Traceback" not in result.stderr, result.stderr
    assert message in result.stderr
    assert "checkpoint" not in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fast, also", [(True, " --xla_gpu_enable_cublaslt=true"), (False, "")])
def test_products_are_cublas_where_the_user_says_nothing(fast, also, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    choose_products(fast)
    assert os.environ["XLA_FLAGS"] == f"--xla_gpu_enable_triton_gemm=false{also}"
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_autotune_level=0")
    choose_products(fast)
    assert os.environ["XLA_FLAGS"] == "--xla_gpu_autotune_level=0"


@pytest.mark.parametrize(
    "more, fast",
    [
        (["--override", "precision=mixed_float16"], True),
        (["--override", "precision=mixed_float16", "--deterministic"], False),
        (["--override", "precision=float32"], False),
    ],
)
def test_a_training_takes_the_fastest_products_in_half_precision_alone(more, fast, tmp_path, monkeypatch):
    asked = []

    def stop(fast=False):
        asked.append(fast)
        sys.exit()

    monkeypatch.setattr("sparse_transformer.command.import_tensorflow", stop)
    monkeypatch.setattr(sys, "argv", ["train.py", "enwik8_small", "--out", str(tmp_path / "run"), *more])
    with pytest.raises(SystemExit):
        runpy.run_path(str(EXAMPLES / "train.py"), run_name="__main__")
    assert asked == [fast]


def test_one_mode_is_that_of_every_layer():
    from sparse_transformer import config

    assert config.load("enwik8").override(["layer_modes=strided"]).layer_modes == ("strided",)


CLUSTER = {
    "cluster": {"worker": ["localhost:40001", "localhost:40002"]},
    "task": {"type": "worker", "index": 0},
}


@pytest.mark.parametrize(
    "text, problem",
    [
        ("{", "no JSON (Expecting property name"),
        ("[]", "it is no object"),
        (json.dumps({**CLUSTER, "task": {"index": 2}}), "task.index is 2, which is none of the 2 workers"),
        (json.dumps({**CLUSTER, "task": {"index": -1}}), "task.index is -1"),
        (json.dumps({**CLUSTER, "task": {"type": "ps", "index": 0}}), "task.type is not worker"),
        (json.dumps({"cluster": {"chief": ["a:1"], "worker": ["b:1"]}}), "its cluster has to have one job, worker"),
        (json.dumps({"cluster": {"worker": ["here"]}}), "cluster.worker has 'here', which is no host:port"),
        (json.dumps({"cluster": {"worker": ["a:1", "a:1"]}}), "cluster.worker lists an address twice"),
        (json.dumps({"cluster": {"worker": 3}}), "cluster.worker is no list of addresses"),
    ],
)  # fmt: skip
def test_a_broken_cluster_is_refused_by_its_name(text, problem, monkeypatch):
    from sparse_transformer import cluster

    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError, match="the environment variable TF_CONFIG is wrong") as raised:
        cluster.from_environment()
    assert problem in str(raised.value) and 'Wanted: {"cluster": {"worker"' in str(raised.value)


def test_a_worker_listens_where_the_job_says(tmp_path):
    elsewhere = {"cluster": {"worker": ["192.0.2.1:40001", "localhost:40002"]}, "task": {"index": 0}}
    result = command("train", "enwik8_small", cwd=tmp_path, TF_CONFIG=json.dumps(elsewhere))
    assert (
        result.returncode == 1
        and "this worker, number 0, is 192.0.2.1:40001, where it cannot listen" in result.stderr
    )
    assert list(tmp_path.iterdir()) == []


def test_a_command_says_nothing_but_its_own(tmp_path):
    """Without TF_CPP_MIN_LOG_LEVEL, which the tests themselves set."""
    quiet = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    words = [sys.executable, EXAMPLES / "tf1_graph.py"]
    result = subprocess.run(words, cwd=tmp_path, env=quiet, capture_output=True, text=True)
    assert result.returncode == 0 and result.stderr == ""
    assert [line[:7] for line in result.stdout.splitlines()] == ["batch 1", "batch 3"]
