"""Programs in the spirit of OpenAI's, run as theirs would be: unedited, by `python -m blocksparse.tf1`."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

PROGRAMS = Path(__file__).parent / "programs"


def start(program, *arguments, **options):
    command = [sys.executable, "-m", "blocksparse.tf1", str(program), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def finish(process, status=0):
    out, err = process.communicate()
    assert process.returncode == status, err[-4000:]
    return out, err


def numbers(process):
    return [[float(number) for number in line.split()] for line in finish(process)[0].splitlines()]


def test_attention():
    rows = numbers(start(PROGRAMS / "attention.py"))
    assert len(rows) == 2
    assert max(error for row in rows for error in row) < 1e-5


def test_text():
    """With neither float16 nor recomputation, with the latter, with both."""
    runs = [start(PROGRAMS / "text.py", *arguments.split()) for arguments in ("0 0", "0 1", "1 1")]
    plain, again, half = (np.ravel(numbers(run)) for run in runs)
    for losses in (plain, half):
        assert losses[0] == pytest.approx(5.545, abs=0.2)  # log 256
        assert losses[-1] < 4
    np.testing.assert_allclose(again, plain, rtol=0, atol=0.002)


def test_images():
    (before,), *during, (after,) = numbers(start(PROGRAMS / "images.py"))
    assert during[-1][0] < during[0][0] - 1
    assert before - 1 > after  # the averaged weights have followed


def test_a_program_finds_what_it_was_written_for(tmp_path):
    """names.py asserts; here only that it ran to its end, in a folder of its own, with its arguments."""
    out, _ = finish(start(PROGRAMS / "names.py", "--one", "two", cwd=tmp_path))
    assert out == "ran with ['--one', 'two']\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("import tensorflow.contrib.layers as layers", "tensorflow.contrib is gone: TensorFlow 2 dropped it"),
        (
            "import tensorflow as tf; tf.estimator",
            "tensorflow.estimator is gone: TensorFlow dropped it in 2.16",
        ),
        ("from tensorflow import layers", "tensorflow.layers is gone: it went with Keras 2"),
        ("import tensorflow as tf; tf.contrib.layers", "tensorflow.contrib is gone: TensorFlow 2 dropped it"),
        ("import tensorflow as tf; tf.layers.dense", "tensorflow.layers is gone: it went with Keras 2"),
        (
            "import tensorflow as tf; tf.no_such",
            "'tensorflow' has no attribute 'no_such', in version 1 neither",
        ),
    ],
)
def test_what_is_gone_is_refused_in_words_at_the_programs_line(tmp_path, line, message):
    (tmp_path / "helper.py").write_text(f"def ask():\n    {line}\n")
    program = tmp_path / "program.py"
    program.write_text("import helper\n\nhelper.ask()\n")
    _, err = finish(start(program), status=1)
    assert message in err.splitlines()[-1]
    shown = err[err.index("Traceback") :]
    assert f'File "{program}", line 3' in shown and "helper.ask()" in shown and line in shown
    assert "tf1" not in shown and "runpy" not in shown  # no line that is not the program's


def test_exit_status(tmp_path):
    program = tmp_path / "program.py"
    program.write_text("import sys\nassert __name__ == '__main__'\nsys.exit(7)\n")
    finish(start(program), status=7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "PROGRAM.py is missing"),
        (["missing.py"], "PROGRAM.py is 'missing.py', which cannot be read (No such file"),
    ],
)
def test_a_command_line_without_a_program(tmp_path, arguments, message):
    process = subprocess.run(
        [sys.executable, "-m", "blocksparse.tf1", *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    assert process.returncode == 1 and message in process.stderr and "usage: " in process.stderr
