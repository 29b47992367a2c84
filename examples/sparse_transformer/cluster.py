"""The workers of a training on several machines, as TensorFlow's TF_CONFIG lists them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

WANTED = '{"cluster": {"worker": ["host:port", "host:port"]}, "task": {"type": "worker", "index": 0}}'


@dataclass(frozen=True)
class Cluster:
    workers: tuple[tuple[str, int], ...]  # (host, port)
    own: int  # number of this worker; number 0 is the chief, who writes

    def name(self, worker: int) -> str:
        host, port = self.workers[worker]
        return f"worker {worker} ({host}, UDP port {port})"


def from_environment() -> Cluster | None:
    """The cluster of TF_CONFIG, or None where it names none. Raises ValueError for what is no such thing."""
    text = os.environ.get("TF_CONFIG", "").strip()
    if not text:
        return None
    try:
        return _parse(json.loads(text))
    except json.JSONDecodeError as error:
        problem = f"no JSON ({error})"
    except RecursionError:
        problem = "nested too deeply"
    except ValueError as error:
        problem = str(error)
    raise ValueError(f"the environment variable TF_CONFIG is wrong: {problem}. Wanted: {WANTED}")


def _parse(config) -> Cluster | None:
    if not isinstance(config, dict):
        raise ValueError("it is no object")
    if not config.get("cluster"):
        return None
    jobs, task = config["cluster"], config.get("task", {})
    if not isinstance(jobs, dict) or list(jobs) != ["worker"]:
        raise ValueError("its cluster has to have one job, worker, whose number 0 is the chief")
    names = jobs["worker"]
    if not isinstance(names, list) or not names:
        raise ValueError("cluster.worker is no list of addresses")
    workers = tuple(_address(name) for name in names)
    if len(set(workers)) < len(workers):
        raise ValueError("cluster.worker lists an address twice")
    if not isinstance(task, dict) or task.get("type", "worker") != "worker":
        raise ValueError("task.type is not worker")
    own = task.get("index", 0)
    own = int(own) if isinstance(own, str) and own.isdecimal() else own  # TensorFlow takes both
    if isinstance(own, bool) or not isinstance(own, int) or not 0 <= own < len(workers):
        raise ValueError(f"task.index is {own!r}, which is none of the {len(workers)} workers of the cluster")
    return Cluster(workers, own)


def _address(name) -> tuple[str, int]:
    host, _, port = name.rpartition(":") if isinstance(name, str) else ("", "", "")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(f"cluster.worker has {name!r}, which is no host:port")
    return host, int(port)
