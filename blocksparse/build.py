"""`python -m blocksparse.build` compiles the C++ now instead of at first use, or into a folder for other machines."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .native.cache import build_portable, shared_object
from .native.compiler import BuildError, missing
from .native.libraries import CPU, GPU, XLA


def main() -> None:
    """Build every library that this TensorFlow allows; print the files."""
    parser = argparse.ArgumentParser(prog="python -m blocksparse.build", description=__doc__)
    help = "build for x86-64-v2, v3 and v4 into DIR, for BLOCKSPARSE_PREBUILT=DIR on machines with this TensorFlow"
    parser.add_argument("--portable", metavar="DIR", type=Path, help=help)
    folder = parser.parse_args().portable
    for library in (CPU, GPU, XLA):
        if reason := missing(library):
            print(reason, file=sys.stderr)
            continue
        try:
            paths = build_portable(library, folder) if folder else [shared_object(library)]
        except BuildError as error:
            sys.exit(f"{error}. {error.repair}.")
        except OSError as error:
            sys.exit(f"{folder}: {error}")
        print(*paths, sep="\n")


if __name__ == "__main__":
    main()
