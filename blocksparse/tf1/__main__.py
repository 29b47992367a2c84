"""The command `python -m blocksparse.tf1`."""

import sys
from pathlib import Path

USAGE = "usage: python -m blocksparse.tf1 PROGRAM.py [arguments of the program]"
HELP = f"""{USAGE}

Runs a program written for TensorFlow 1 and OpenAI's blocksparse as it stands. For the program's own files
`import tensorflow` means tensorflow.compat.v1 without TensorFlow 2's behaviour; operations go to the CPU where the
device they name is not there; mpi4py has one rank where it is not installed; NumPy has the names it dropped."""


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(f"{USAGE}\nPROGRAM.py is missing: name the program to run")
    if sys.argv[1] in ("-h", "--help"):
        print(HELP)
        return
    path = Path(sys.argv[1])
    try:
        source = path.read_bytes()
    except OSError as error:
        sys.exit(
            f"{USAGE}\nPROGRAM.py is {sys.argv[1]!r}, which cannot be read ({error.strerror}): name a file"
        )
    from . import (
        numpy1,
        one_rank,
        program,
        tensorflow1,
    )  # takes seconds, an error in the command line should not

    one_rank.provide()
    numpy1.provide()
    tensorflow1.provide(program.absolute(path))
    program.run(source, path)


if __name__ == "__main__":
    main()
