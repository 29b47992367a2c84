"""Ends a worker that waits for another: collectives, NCCL's above all, would wait for ever.

Every worker tells every other once a second, by UDP on its own TF_CONFIG address (TensorFlow's is TCP), how many
steps it has entered. Whoever has heard nothing from a worker for WORKER_TIMEOUT seconds, or has been in a step for
that long which another has not entered, ends with a message and status 1. A step that is slow for all is left alone.

TensorFlow connects the workers in a call that holds the interpreter, so that nothing could be said and no signal be
taken meanwhile. Hence `gather`: TensorFlow is asked once all workers are known to be there.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from contextlib import suppress

from .cluster import Cluster

_SILENT = 3  # seconds: what a worker that tells something every second does not reach


def limit() -> float:
    """Seconds that one worker waits for another. Raises ValueError where WORKER_TIMEOUT is no such number."""
    text = os.environ.get("WORKER_TIMEOUT", "").strip() or "60"
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ValueError(
            f"the environment variable WORKER_TIMEOUT is {text!r}. Wanted: seconds that a worker waits for another, "
            "above 0, such as 60"
        )
    return seconds


class Watchdog:
    """Watches from construction on; `gather` waits for all workers to be there, `entered` says that this worker begins
    a step, `follow` waits for the chief to be done, `close` says that this worker is."""

    def __init__(self, cluster: Cluster | None):
        self.cluster, self.limit = cluster, limit()
        self.own = cluster.own if cluster else 0
        self.peers = [i for i in range(len(cluster.workers)) if i != self.own] if cluster else []
        self.steps = 0
        self.since = time.monotonic()
        self.heard: dict[int, tuple[float, int]] = {}  # when last, and the steps it had entered
        self.known: set[int] = set()  # those that have heard this worker
        self.done = threading.Event()
        if self.peers:
            self.socket = self._open()
            for loop in (self._tell, self._listen):
                threading.Thread(target=loop, daemon=True).start()

    def _open(self) -> socket.socket:
        """Listens where the job says that this worker is, and nowhere else."""
        host, port = self.cluster.workers[self.own]
        try:
            family, kind, protocol, _, address = _resolve(host, port)
            opened = socket.socket(family, kind, protocol)
            opened.bind(address)
        except OSError as error:
            raise ValueError(
                f"TF_CONFIG says that this worker, number {self.own}, is {host}:{port}, where it cannot listen "
                f"({error.strerror}); give an address of this machine and a port that is free"
            ) from error
        return opened

    def gather(self) -> None:
        """Returns once every worker has been heard and has heard this one; says whom it waits for."""
        began, clock, said = time.monotonic(), time.strftime("%H:%M:%S"), False
        while missing := [peer for peer in self.peers if peer not in self.heard or peer not in self.known]:
            waited = time.monotonic() - began
            if waited > self.limit:
                self._end(missing[0], "has not been heard of", self.limit)
            if waited > 1 and not said:
                names = ", ".join(map(self.cluster.name, missing))
                sys.stderr.write(
                    f"worker {self.own} waits for {names} since {clock}, for {self.limit:.0f} seconds at most\n"
                )
                sys.stderr.flush()
                said = True
            time.sleep(0.05)
        if self.peers:
            self._send(3)  # the others need to know too, before TensorFlow holds the interpreter
            self.heard = {peer: (time.monotonic(), steps) for peer, (_, steps) in self.heard.items()}
            threading.Thread(target=self._watch, daemon=True).start()

    def entered(self, steps: int) -> None:
        self.steps, self.since = steps, time.monotonic()

    def follow(self) -> None:
        """Until the chief has closed: TensorFlow takes a worker that leaves before it for lost."""
        while self.heard[0][1] < sys.maxsize:
            time.sleep(0.1)

    def blame(self) -> None:
        """After an error of a collective: ends here if a worker fell silent, which TensorFlow may notice first."""
        until = time.monotonic() + 2 * _SILENT
        while self.heard and time.monotonic() < until:
            for peer, (last, steps) in list(self.heard.items()):
                if steps < sys.maxsize and (silent := time.monotonic() - last) > _SILENT:
                    self._end(peer, "has not been heard of", silent)
            time.sleep(0.1)

    def close(self) -> None:
        """Tells the others, so that none of them waits for this worker."""
        self.steps = sys.maxsize
        self.done.set()
        self._send(3)

    def _send(self, times: int = 1) -> None:
        """Datagrams get lost: what matters is sent more than once."""
        for peer in self.peers * times:
            message = json.dumps([self.own, self.steps, peer in self.heard]).encode()
            with suppress(OSError):  # its machine may not be up yet; the limit decides
                self.socket.sendto(message, _resolve(*self.cluster.workers[peer])[4])

    def _tell(self) -> None:
        while not self.done.wait(1):
            self._send()

    def _listen(self) -> None:
        while True:
            try:
                message, sender = self.socket.recvfrom(1024)
                self._hear(message, sender)
            except (
                OSError,
                ValueError,
                TypeError,
                RecursionError,
            ):  # a peer's closed port, or what is no datagram of ours
                continue

    def _hear(self, message: bytes, sender) -> None:
        """Takes what comes from a worker's own address; raises ValueError for what is no message of its."""
        peer, steps, hears = json.loads(message)
        if type(peer) is not int or peer not in self.peers:
            raise ValueError(message)
        if type(steps) is not int or not 0 <= steps <= sys.maxsize:
            raise ValueError(message)
        if sender[:2] != _resolve(*self.cluster.workers[peer])[4][:2]:
            raise ValueError(sender)
        self.heard[peer] = (time.monotonic(), steps)
        if hears is True and peer not in self.known:
            self.known.add(peer)
            self._send()  # it may be waiting for just this

    def _watch(self) -> None:
        while not self.done.wait(1):
            now = time.monotonic()
            for peer, (last, steps) in list(self.heard.items()):
                if steps == sys.maxsize:
                    continue
                silent = now - last > self.limit
                if silent or (steps < self.steps and now - self.since > self.limit):
                    problem = "has not been heard of" if silent else f"is still before step {steps + 1}"
                    self._end(peer, problem, self.limit)

    def _end(self, peer: int, problem: str, seconds: float) -> None:
        sys.stderr.write(
            f"\nworker {self.own} stops: {self.cluster.name(peer)} {problem} for {seconds:.0f} seconds. "
            "Start all workers again to resume from the last checkpoint.\n"
        )
        sys.stderr.flush()
        os._exit(1)  # the main thread is inside a collective, which no exception reaches


def _resolve(host: str, port: int):
    """(family, kind, protocol, name, address) of the host, IPv4 where it has one."""
    found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_DGRAM)
    return min(found, key=lambda entry: entry[0] != socket.AF_INET)
