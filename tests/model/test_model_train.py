"""Training that survives whatever ends it, and stops where it cannot go on."""

import re
import resource
import signal
import time
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import evaluate
import numpy as np
import plot
import pytest
import sample
import tensorflow as tf
import train
from sparse_transformer import checkpoint, config, origin, pictures, runs, training
from sparse_transformer.files import locked
from sparse_transformer.log import Log
from sparse_transformer.metrics import read_rows
from training_runs import EXAMPLES, STEPS, arrays, finish, metrics, run, start, train_command

# Runs the command, and kills it as it opens the (argv[1])-th array of its checkpoints for writing.
KILLED_WHILE_WRITING = f"""
import os, runpy, signal, sys, zipfile
left, real = int(sys.argv[1]), zipfile.ZipFile.open
def counted(self, name, mode="r", **kwargs):
    global left
    left -= mode == "w"
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, name, mode, **kwargs)
zipfile.ZipFile.open = counted
sys.argv = sys.argv[2:]
sys.path.insert(0, {str(EXAMPLES)!r})
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def killed_while_writing(out, array):
    status, output = finish(start([str(array), *train_command(out, STEPS)], "-c", KILLED_WHILE_WRITING))
    assert status == -signal.SIGKILL, output
    assert (out / "checkpoint.npz.partial").exists()


def killed_after_a_checkpoint(out):
    process = start(train_command(out, STEPS))
    before = (out / "checkpoint.npz").stat().st_mtime_ns
    while (out / "checkpoint.npz").stat().st_mtime_ns == before and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    finish(process)


@pytest.mark.thorough
def test_killed_at_any_moment_the_run_is_the_same_to_the_bit(unbroken, tmp_path):
    count = len(arrays(unbroken))
    killed_while_writing(tmp_path, count + count // 2)  # within the second checkpoint, of step 4
    assert int(arrays(tmp_path)["step"]) == 2
    killed_after_a_checkpoint(tmp_path)
    run(train_command(tmp_path, STEPS))
    assert metrics(tmp_path) == metrics(unbroken)
    assert len(metrics(tmp_path)) == STEPS
    whole, resumed = arrays(unbroken), arrays(tmp_path)
    assert whole.keys() == resumed.keys()
    for name in whole:
        np.testing.assert_array_equal(whole[name], resumed[name], err_msg=name)


def test_averages_are_not_the_weights(unbroken):
    saved = arrays(unbroken)
    assert not np.array_equal(saved["decayed"], saved["adam_w/decayed_average"])


def call(monkeypatch, module, *arguments):
    monkeypatch.setattr("sys.argv", [module.__name__, *map(str, arguments)])
    module.main()


@contextmanager
def full_disk(size):
    """No file of this process grows beyond `size` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_leaves_the_checkpoint(unbroken, tmp_path, monkeypatch):
    for name in ("config.json", "checkpoint.npz", "metrics.csv"):
        (tmp_path / name).write_bytes((unbroken / name).read_bytes())
    good = (tmp_path / "checkpoint.npz").read_bytes()
    stopped = pytest.raises(SystemExit, match=r"(?s)train\.py: cannot write.*The last good checkpoint")
    with full_disk(len(good) // 2), stopped:
        call(monkeypatch, train, *train_command(tmp_path, STEPS + 4)[1:])
    assert (tmp_path / "checkpoint.npz").read_bytes() == good
    assert not (tmp_path / "checkpoint.npz.partial").exists()


def test_a_disk_too_full_for_events_is_an_error_of_the_disk(tmp_path):
    log = Log(tmp_path, 0)
    with full_disk(130), pytest.raises(OSError, match=r"^TensorBoard's events: File too large$"):
        log.add(0, 1.0, bits=8.0, gradient_norm=1.0)


def test_a_loss_that_is_no_number_stops(tmp_path, monkeypatch):
    bad = train_command(tmp_path, 20, "learning_rate=1e30", "warmup=1", "checkpoint_every=1")
    with pytest.raises(SystemExit, match=r"(?s)train\.py: the loss is.*try a lower learning_rate"):
        call(monkeypatch, train, *bad[1:])
    assert all(np.isfinite(array).all() for array in arrays(tmp_path).values())


def test_a_gradient_that_is_never_a_number_stops(tmp_path, monkeypatch):
    inner = training.Trainer._gradients

    def poisoned(self, tokens, step):
        loss, gradients = inner(self, tokens, step)
        return loss, [np.nan * gradients[0], gradients[1]]  # of the matrices

    monkeypatch.setattr(training.Trainer, "_gradients", poisoned)
    monkeypatch.setattr(training, "SKIPS", 5)
    bad = train_command(tmp_path, 20, "precision=mixed_float16", "checkpoint_every=20")
    named = "logits/kernel, block1/contract/kernel, block1/expand/kernel, block1/attention/project/kernel, "
    words = (
        f"norm nan at step 4, as in 4 steps before it; .*: {named}block1/attention/value/kernel and 12 more"
    )
    with pytest.raises(SystemExit, match=words):
        call(monkeypatch, train, *bad[1:])


def test_other_products_are_advised_where_xla_chooses():
    flag = "--xla_gpu_enable_triton_gemm=false"
    assert training._other_products(True, "") == f", or add {flag} to XLA_FLAGS (docs/howto/nan.md)"
    assert training._other_products(True, f"--xla_gpu_enable_cublaslt=true {flag}") == ""
    assert training._other_products(False, "") == ""


def test_another_configuration_is_refused(unbroken):
    settings = runs.read_config(unbroken)
    runs.write_config(unbroken, replace(settings, steps=100))  # a longer run is the same run
    with pytest.raises(ValueError, match=r"another configuration \(width 32 -> 64\); choose another --out"):
        runs.write_config(unbroken, replace(settings, width=64))


def test_two_trainings_in_one_folder_are_refused(unbroken, monkeypatch):
    with (
        locked(unbroken),
        pytest.raises(SystemExit, match=r"train\.py: .* is being trained by process \d+ of"),
    ):
        call(monkeypatch, train, *train_command(unbroken, STEPS)[1:])


def test_a_damaged_checkpoint_is_named(tmp_path):
    (tmp_path / "checkpoint.npz").write_bytes(b"PK\3\4nothing")
    with pytest.raises(ValueError, match=r"checkpoint\.npz is damaged .*; delete it to start over"):
        checkpoint.read(tmp_path)


def test_evaluating_gives_what_training_ended_with(unbroken, monkeypatch, capsys):
    """The same windows of the same split, without a word about either; and training says what it is at its start."""
    said = unbroken.with_suffix(".said").read_text()
    first = "enwik8_small: 42,528 parameters on CPU, "
    assert said.startswith(first) and "attention kernel: " in said and "data: built-in data (" in said
    assert f"run: {unbroken}, steps 0 to {STEPS} of 4 x 64 tokens" in said
    assert re.search(r"about \d+ \w+ to go, at \S+ s a step", said)
    call(monkeypatch, evaluate, unbroken)
    score = re.compile(r": (\S+) \+- (\S+) bits per dim over 256 of ([\d,]+) windows")
    trained, evaluated = (score.search(text).groups() for text in (said, capsys.readouterr().out))
    assert trained[2] == evaluated[2] and float(trained[1]) > 0
    np.testing.assert_allclose(float(trained[0]), float(evaluated[0]), atol=2e-4)


def test_the_log_has_the_rate_and_held_out_bits(unbroken):
    rows = read_rows(unbroken / "metrics.csv")
    assert [bool(row[5]) for row in rows] == [False, True] * (STEPS // 2)  # at every checkpoint
    assert [float(row[4]) for row in rows][:4] == pytest.approx([0, 0.25e-3, 0.5e-3, 0.75e-3])


@pytest.mark.parametrize(
    "name, precision, suits",
    [
        ("cifar10", None, "cifar10_small"),
        ("imagenet64", None, "imagenet64_small"),
        ("enwik8", None, "enwik8_small"),
        ("music_65536", None, "music_small"),
        ("enwik8_small", "mixed_float16", "--override precision=float32"),
        ("cifar10_small", None, None),
    ],
)
def test_a_model_for_a_gpu_warns_on_a_cpu(name, precision, suits, monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda _: [])
    trainer = SimpleNamespace(model=SimpleNamespace(count_params=lambda: 7))
    settings = config.load(name).override([f"precision={precision}"] if precision else [])
    job = SimpleNamespace(settings=settings, folder="run", origin="built-in data")
    said = training._description(job, trainer, 0)
    assert ("is meant for a GPU, and this is a CPU: a step may take minutes" in said) == bool(suits)
    assert not suits or said.endswith(f" minutes. {suits} suits a CPU")


def test_the_command_warns_before_its_first_step(tmp_path):
    """In a process of its own, where CUDA_VISIBLE_DEVICES hides every GPU."""
    said = run(train_command(tmp_path / "run", 1, "precision=mixed_float16"))
    warning = said.index("warning: enwik8_small in mixed_float16 is meant for a GPU, and this is a CPU")
    assert warning < said.index("1/1")


def test_a_pattern_that_does_not_fit_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"train\.py: (?!.*checkpoint)"):
        call(monkeypatch, train, *train_command(tmp_path / "run", STEPS, "local_attn_ctx=12")[1:])
    assert not (tmp_path / "run").exists()


def test_fewer_steps_than_were_done_are_refused(unbroken, monkeypatch):
    with pytest.raises(
        SystemExit, match=r"has done 8 steps already, more than steps=4\n.*The last good checkpoint, of"
    ):
        call(monkeypatch, train, *train_command(unbroken, 4)[1:])


def test_the_other_commands_take_the_run(unbroken, monkeypatch, capsys):
    call(monkeypatch, evaluate, unbroken, "--split", "test", "--limit", 3, "--min-context", 32)
    call(monkeypatch, sample, unbroken, "--length", 40, "--prompt", "import ")
    call(monkeypatch, plot, "curves", unbroken, "--out", unbroken / "curves.png")
    output = capsys.readouterr().out
    assert "windows of test, minimum context 32; data: built-in data" in output and "import " in output
    assert (unbroken / "sample.txt").stat().st_size == 40
    assert (unbroken / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "module, arguments, message",
    [
        (evaluate, ["none"], r"evaluate\.py: none holds no run .*train one with examples/train\.py"),
        (sample, ["none"], r"sample\.py: none holds no run"),
        (plot, ["curves", "none"], r"plot\.py: none/metrics\.csv does not exist"),
        (
            train,
            ["enwik8_small", "--data", "none/enwik8"],
            r"train\.py: none/enwik8: no such file\. Wanted: a text file",
        ),
        (
            train,
            ["enwik8_small", "--override", "depth=3"],
            r"train\.py: --override depth=3: wanted key=value",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_commands_end_with_a_sentence(module, arguments, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message):
        call(monkeypatch, module, *arguments)


@pytest.mark.thorough
def test_a_forgotten_data_option_goes_on_with_the_same_data(tmp_path):
    """Commands in processes of their own: training, training on and evaluating, the latter two without --data."""
    text, out = tmp_path / "text", tmp_path / "run"
    text.write_bytes(bytes(range(97, 123)) * 200)
    given = ["--data", str(text)]
    noted = re.compile(re.escape(f"{text} (5,200 bytes, "))
    assert noted.search(run([*train_command(out, 2), *given]))
    assert noted.search(run(train_command(out, 4)))
    score = [str(EXAMPLES / "evaluate.py"), str(out), "--limit", "2"]
    assert noted.search(run(score))
    moved = text.rename(tmp_path / "moved")
    for command in (train_command(out, 6), score):
        status, said = finish(start(command))
        assert status == 1 and "which is gone from there; give --data the place where it is now" in said
    assert run([*score, "--data", str(moved)])
    moved.rename(text).write_bytes(bytes(range(65, 91)) * 200)
    for command in (train_command(out, 6), score):
        status, said = finish(start(command))
        assert status == 1 and "is another data set; give --data the one that it was trained on" in said
    assert len(metrics(out)) == 4


def test_pictures_of_attention_refuse_another_data_set(monkeypatch, tmp_path):
    """The pictures are of the data that the model learnt, unless --data says otherwise."""
    settings = replace(config.load("cifar10_small"), layers=1, width=32)
    runs.write_config(tmp_path, settings)
    origin.write(tmp_path, replace(origin.measure(settings, None), digest="0" * 64))
    monkeypatch.setattr(pictures, "load_model", lambda folder: SimpleNamespace(config=settings))
    with pytest.raises(ValueError, match="is another data set; give --data the one"):
        pictures.attention(tmp_path, None, None, None)
