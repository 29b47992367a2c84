"""Ends a worker that waits for another: collectives, NCCL's above all, would wait for ever.

Every worker tells every other once a second, by UDP on its own TF_CONFIG port (TensorFlow's is TCP), how many
steps it has entered. Whoever has heard nothing from a worker for LIMIT seconds, or has been in a step for that long
which another has not entered, ends with a message and status 1. A step that is slow for all is left alone.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from contextlib import suppress

LIMIT = float(os.environ.get("WORKER_TIMEOUT", "60"))


class Watchdog:
    """Watches from construction on; `entered` says that this worker begins a step, `follow` waits for the chief to be
    done, `close` says that this worker is."""

    def __init__(self):
        cluster = json.loads(os.environ.get("TF_CONFIG") or "{}")
        workers = cluster.get("cluster", {}).get("worker", [])
        self.own = int(cluster.get("task", {}).get("index", 0))
        self.peers = {i: self._address(worker) for i, worker in enumerate(workers) if i != self.own}
        self.steps = 0
        self.since = time.monotonic()
        self.heard = dict.fromkeys(self.peers, (time.monotonic(), 0))
        self.done = threading.Event()
        if self.peers:
            self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.socket.bind(("", self._address(workers[self.own])[1]))
            for loop in (self._tell, self._listen, self._watch):
                threading.Thread(target=loop, daemon=True).start()

    @staticmethod
    def _address(worker: str) -> tuple[str, int]:
        host, _, port = worker.rpartition(":")
        return host, int(port)

    def entered(self, steps: int) -> None:
        self.steps, self.since = steps, time.monotonic()

    def follow(self) -> None:
        """Until the chief has closed: TensorFlow takes a worker that leaves before it for lost."""
        while self.heard[0][1] < sys.maxsize:
            time.sleep(0.1)

    def close(self) -> None:
        """Tells the others, so that none of them waits for this worker."""
        self.steps = sys.maxsize
        self.done.set()
        for _ in range(3 if self.peers else 0):  # datagrams get lost
            self._send()

    def _send(self) -> None:
        for address in self.peers.values():
            with suppress(OSError):  # its machine may not be up yet; the limit decides
                self.socket.sendto(json.dumps([self.own, self.steps]).encode(), address)

    def _tell(self) -> None:
        while not self.done.wait(1):
            self._send()

    def _listen(self) -> None:
        while True:
            peer, steps = json.loads(self.socket.recv(1024))
            self.heard[peer] = (time.monotonic(), steps)

    def _watch(self) -> None:
        while not self.done.wait(1):
            now = time.monotonic()
            for peer, (last, steps) in self.heard.items():
                if steps == sys.maxsize:
                    continue
                silent = now - last > LIMIT
                if silent or (steps < self.steps and now - self.since > LIMIT):
                    self._end(
                        peer, "has not been heard of" if silent else f"is still before step {steps + 1}"
                    )

    def _end(self, peer: int, problem: str) -> None:
        host, port = self.peers[peer]
        sys.stderr.write(
            f"\nworker {self.own} stops: worker {peer} ({host}, UDP port {port}) {problem} for {LIMIT:.0f} seconds. "
            "Start all workers again to resume from the last checkpoint.\n"
        )
        sys.stderr.flush()
        os._exit(1)  # the main thread is inside a collective, which no exception reaches
