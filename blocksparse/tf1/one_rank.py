"""mpi4py for a program that is one process."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np

from ..nccl import _LAUNCHERS


class OneRank:
    """MPI.COMM_WORLD of a program started without mpirun: what every rank has is what this one has."""

    rank, size = 0, 1

    def Get_rank(self) -> int:
        return 0

    def Get_size(self) -> int:
        return 1

    def Barrier(self) -> None:
        pass

    barrier = Barrier

    def bcast(self, obj: Any, root: int = 0) -> Any:
        return obj

    scan = allreduce = reduce = lambda self, obj, op=None, root=0: obj

    def gather(self, obj: Any, root: int = 0) -> list:
        return [obj]

    allgather = gather

    def scatter(self, objs: list, root: int = 0) -> Any:
        return objs[0]

    def Bcast(self, buf: Any, root: int = 0) -> None:
        pass

    def Allreduce(self, sendbuf: Any, recvbuf: Any, op: Any = None) -> None:
        if isinstance(sendbuf, np.ndarray):  # else MPI.IN_PLACE
            recvbuf[...] = sendbuf

    def Abort(self, errorcode: int = 0) -> None:
        sys.exit(errorcode)


def provide() -> None:
    """Where mpi4py is not installed, `from mpi4py import MPI` gives one rank; under mpirun that would be wrong."""
    if find_spec("mpi4py") or any(int(os.environ.get(name, "1")) > 1 for name in _LAUNCHERS):
        return
    package, mpi = ModuleType("mpi4py"), ModuleType("mpi4py.MPI")
    operations = {name: name for name in ("SUM", "MAX", "MIN", "PROD", "IN_PLACE")}
    world = OneRank()
    vars(mpi).update(operations, COMM_WORLD=world, COMM_SELF=world)
    vars(package).update(MPI=mpi, __path__=[])
    sys.modules.update({"mpi4py": package, "mpi4py.MPI": mpi})
