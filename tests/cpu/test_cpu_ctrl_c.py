"""Ctrl-C goes to a terminal's whole process group: a compilation survives it where the program does."""

import subprocess
import sys

PRESSED = """
import os, signal, sys, threading
from blocksparse.native import compiler

os.environ["CXX"] = sys.argv[1]  # not before: the import asks for the kernels
signal.signal(signal.SIGINT, lambda *_: {})
threading.Timer(0.5, os.killpg, (os.getpgid(0), signal.SIGINT)).start()
print(compiler.version())
"""


def press(tmp_path, handler):
    program = tmp_path / "compiler"
    program.write_text("#!/bin/sh\nsleep 2\necho done | tee {}\n".format(tmp_path / "ended"))
    program.chmod(0o755)
    return subprocess.run(
        [sys.executable, "-c", PRESSED.replace("{}", handler), program],
        capture_output=True,
        text=True,
        timeout=120,
        start_new_session=True,
    )


def test_a_program_that_goes_on_has_its_compiler_still(tmp_path):
    result = press(tmp_path, "None")
    assert (result.returncode, result.stdout) == (0, "done\n\n"), result.stderr


def test_a_program_that_ends_takes_its_compiler_along(tmp_path):
    result = press(tmp_path, "(_ for _ in ()).throw(KeyboardInterrupt)")
    assert "KeyboardInterrupt" in result.stderr and not (tmp_path / "ended").exists()
